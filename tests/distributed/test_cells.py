"""Every technique in every way to train in several processes is right, or refuses before the first batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.contract.cases import CASES
from tests.distributed.cells import BATCHES
from tests.distributed.launch import launch
from tests.distributed.worlds import WORLDS, Part
from tests.toys import trainer, weights


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a function that runs a world once, for all techniques asked for, and gives its folder."""
    asked = {
        (item.callspec.params["world"], item.callspec.params["technique"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == test_cell.__name__
    }
    folders: dict[str, Path] = {}

    def run(world: str) -> Path:
        if world not in folders:
            folders[world] = tmp_path_factory.mktemp("world")
            cases = [name for name in CASES if (world, name) in asked]
            try:
                launch("tests.distributed.cells", world, str(folders[world]), *cases)
            except RuntimeError as error:
                (folders[world] / "error.txt").write_text(str(error))
        return folders[world]

    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, Tensor]]:
    """Return a function that gives the final weights of a run in one process, with the same global batches.

    In one process there are no shards, so that several worlds have one such run.
    """
    known: dict[object, dict[str, Tensor]] = {}

    def run(technique: str, world: str) -> dict[str, Tensor]:
        settings = {k: v for k, v in WORLDS[world].settings().items() if k != "plugins"}
        module = CASES[technique].adapt(WORLDS[world].module())
        key = technique, module.automatic_optimization, tuple(settings.items())
        if key not in known:
            folder = tmp_path_factory.mktemp("alone")
            runner = trainer(CASES[technique].active(), default_root_dir=folder, **settings)
            runner.fit(module, Part(BATCHES), Part(2, seed=9, fixed=True))
            known[key] = weights(module)
        return known[key]

    return run


def share(world: str) -> int:
    """Return of how many techniques ``make test`` tries one: few of what takes long."""
    return 16 if ", " in world else 4 if "FSDP" in world else 1


@pytest.mark.parametrize("technique", CASES)
@pytest.mark.parametrize(
    "world",
    [
        pytest.param(name, marks=[pytest.mark.xdist_group(name), pytest.mark.sampled(share(name))])
        for name in WORLDS
    ],
)
def test_cell(
    world: str,
    technique: str,
    results: Callable[[str], Path],
    alone: Callable[[str, str], dict[str, Tensor]],
    record_property: Callable[[str, object], None],
) -> None:
    folder = results(world)
    recorded, error = folder / "results.json", folder / "error.txt"
    found = json.loads(recorded.read_text()) if recorded.exists() else {}
    assert technique in found, error.read_text()
    refused = found[technique]["refused"]
    if refused is not None:
        record_property("refused", refused)
        return
    together = torch.load(folder / f"{technique}.pt", weights_only=True)
    exempt = CASES[technique].exempt
    own_numbers = "same data" in exempt or (WORLDS[world].sharded and "same numbers" in exempt)
    if WORLDS[world].same_numbers and not own_numbers:
        expected = alone(technique, world)
        assert expected.keys() == together.keys()
        for name, value in expected.items():
            torch.testing.assert_close(together[name], value, rtol=0, atol=1e-10)
