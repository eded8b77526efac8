"""Whatever breaks a run off and wherever, resumed it ends where the uninterrupted one does, to the bit.

``make soak`` runs 50 random points; ``pytest tests/soak --points N --seed S`` any others.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightning_tricks.lifecycle import files
from tests.soak.interruptions import HOOKS, Interruption, run
from tests.toys import assert_equal

WAYS = ("kill", "terminate", "raise", "write", "full")


def points(count: int, seed: int) -> Iterator[Interruption]:
    """Yield interruptions: each way in turn, at a random hook and call."""
    chance = random.Random(seed)
    for index in range(count):
        way = WAYS[index % len(WAYS)]
        hook = "on_save_checkpoint" if way == "write" else chance.choice(HOOKS)
        often = {"on_train_epoch_end": 3, "on_validation_end": 3, "on_validation_batch_end": 6}
        yield Interruption(way, hook, chance.randint(1, often.get(hook, 7 if "save" in hook else 15)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    chosen = list(points(option("--points"), option("--seed")))
    metafunc.parametrize("point", chosen, ids=lambda point: f"{point.way}-{point.hook}-{point.count}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder), (folder / "output.txt").read_text()
    return folder


def logged(folder: Path) -> dict[tuple[int, str], set[float]]:
    """Return all values logged under each step and name."""
    found: dict[tuple[int, str], set[float]] = {}
    for line in (folder / "log.jsonl").read_text().splitlines():
        try:
            metrics = json.loads(line)
        except json.JSONDecodeError:  # cut off by the full disk
            continue
        step = metrics.pop("step")
        for name, value in metrics.items():
            found.setdefault((step, name), set()).add(value)
    return found


def test_a_broken_off_run_ends_where_the_whole_one_does(
    point: Interruption, whole: Path, tmp_path: Path
) -> None:
    ended = run(tmp_path, point)
    for path in [*tmp_path.glob("snapshots*/*.pt"), *tmp_path.glob("fused*.ckpt")]:
        files.load(path)  # ours are whole or not there
    assert ended or run(tmp_path), (tmp_path / "output.txt").read_text()
    first, second = (torch.load(folder / "final.ckpt", weights_only=True) for folder in (whole, tmp_path))
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert_equal(first[key], second[key], key)
    states = [
        {name: state for name, state in checkpoint["callbacks"].items() if "ModelCheckpoint" not in name}
        for checkpoint in (first, second)
    ]
    assert_equal(*states)
    assert logged(tmp_path) == logged(whole)
