"""Fused tensors beside what mergekit makes of the same ones.

Its numbers stand in ``mergekit_numbers.json``. Where it is installed, alone or in an environment of its own
whose Python ``MERGEKIT_PYTHON`` names, larger tensors are compared, too: ``pytest -m mergekit``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from tests.fusion.mergekit_numbers import CASES, PATH, ROWS, Model, merged, model, summary

NUMBERS = json.loads(PATH.read_text())
DTYPES = (torch.float32, torch.bfloat16)
PYTHON = os.environ.get("MERGEKIT_PYTHON") or (sys.executable if importlib.util.find_spec("mergekit") else "")
DRAWN = [name for name in CASES if name.startswith("dare")]
EXACT = [name for name in CASES if name not in DRAWN]
FLOAT32 = [name for name in EXACT if CASES[name].dtype == torch.float32]


def ours(name: str, models: list[Model]) -> Model:
    return CASES[name].ours.fuse(models[: CASES[name].count])


def error(name: str, found: Model, models: list[Model]) -> float:
    """Return how far ``found`` is from what our method makes of the models in double precision."""
    exact = ours(name, [{key: value.double() for key, value in each.items()} for each in models])
    return sum(float((found[key].double() - exact[key]).abs().sum()) for key in found)


@pytest.mark.parametrize("name", EXACT)
def test_it_is_mergekits_or_nearer_to_what_is_exact(name: str) -> None:
    models = [model(index, CASES[name].dtype) for index in range(4)]
    fused = summary(name, ours(name, models))
    theirs = {key: torch.tensor(NUMBERS[name][key]).view_as(fused[key]) for key in fused}
    if name in FLOAT32:
        torch.testing.assert_close(fused, theirs, rtol=0, atol=1e-6)
    else:
        torch.testing.assert_close(
            {key: value.float() for key, value in fused.items()}, theirs, rtol=0.02, atol=0.01
        )
        # Linear merging is done in float32 there, too; all else in the type of the models.
        factor = 1.0 if "linear" in name or "slerp" in name else 0.9
        assert error(name, fused, models) <= factor * error(name, theirs, models) + 1e-9


@pytest.mark.parametrize("name", DRAWN)
def test_in_expectation_it_is_mergekits(name: str) -> None:
    rows = ours(name, [model(index, torch.float32) for index in range(4)])["many"].double()
    limit = 5 * 2**0.5 * rows.std(0) / ROWS**0.5
    assert ((rows.mean(0) - torch.tensor(NUMBERS[name]["mean"], dtype=torch.float64)).abs() < limit).all()


def random(dtype: torch.dtype) -> list[Model]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (300, 200), "b": (50,), "kernel": (16, 8, 3, 3), "one": (1,), "many": (2000, 6)}
    return [
        {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        for _ in range(4)
    ]


@pytest.mark.mergekit
@pytest.mark.skipif(not PYTHON, reason="mergekit is not installed, nor is MERGEKIT_PYTHON set")
def test_large_tensors_are_mergekits(tmp_path: Path) -> None:
    models = {dtype: random(dtype) for dtype in DTYPES}
    _, found = merged(PYTHON, tmp_path, models)
    for name in EXACT:
        mine = ours(name, models[CASES[name].dtype])
        for each in () if CASES[name].alone else (mine, found[name]):
            del each["one"]
        if name in FLOAT32:
            near = 1e-6 if CASES[name].alone else 1e-5  # float32 tells the angles of model_stock less well
            torch.testing.assert_close(mine, found[name], rtol=0, atol=near, msg=name)
        else:
            narrow = models[torch.bfloat16]
            assert error(name, mine, narrow) <= error(name, found[name], narrow), name
    base = models[torch.float32][0]["w"]
    agree = (ours("ties float32", models[torch.float32])["w"] != base) == (found["ties float32"]["w"] != base)
    assert agree.all()  # where all are trimmed, or none agrees, the base is left


@pytest.mark.mergekit
@pytest.mark.skipif(not PYTHON, reason="mergekit is not installed, nor is MERGEKIT_PYTHON set")
def test_the_numbers_are_mergekits(tmp_path: Path) -> None:
    models = {dtype: [model(index, dtype) for index in range(4)] for dtype in DTYPES}
    version, found = merged(PYTHON, tmp_path, models)
    if version != NUMBERS["mergekit"]:
        pytest.skip(f"mergekit {version} is another than that of the numbers")
    for name in EXACT:
        for key, value in summary(name, found[name]).items():
            torch.testing.assert_close(
                value.float().flatten(), torch.tensor(NUMBERS[name][key]), rtol=0, atol=1e-6
            )
