"""What mergekit makes of small tensors, and which of our methods is to make the same.

The numbers stand in ``mergekit_numbers.json``. To make them anew, with the Python of an environment that has
mergekit:

    python -m tests.fusion.mergekit_numbers OTHER_PYTHON
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lightning_tricks as lt
from lightning_tricks.fusion.methods import FusionMethod

PATH = Path(__file__).with_suffix(".json")
WEIGHTS = (0.5, 1.0, 2.0)
ROWS = 40_000
Model = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A method of ours and the same of mergekit.

    Attributes:
        ours: Of which the weights are :data:`WEIGHTS`, if it is over a base.
        theirs: Name in mergekit.
        settings: There.
        count: How many models it gets, the base included.
        based: Whether the first is a base.
        dtype: Of the models.
        alone: Whether they also agree on tensors of one entry: of those mergekit drops the change with
            breadcrumbs, and goes far beyond all models with model_stock.
    """

    ours: FusionMethod
    theirs: str
    settings: dict[str, Any] = field(default_factory=dict)
    count: int = 4
    based: bool = True
    dtype: torch.dtype = torch.float32
    alone: bool = True

    def config(self, folder: Path) -> dict[str, Any]:
        """Return the configuration for models in ``folder``."""
        paths = [str(folder / f"{self.dtype}{index}.safetensors") for index in range(self.count)]
        base, others = (paths[:1], paths[1:]) if self.based else ([], paths)
        weighted = [
            {"model": path, "parameters": {"weight": weight}}
            for path, weight in zip(others, (*WEIGHTS, 0.25), strict=False)
        ]
        return {
            "merge_method": self.theirs,
            "models": weighted,
            "parameters": self.settings,
            **({"base_model": base[0]} if base else {}),
        }


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the cases with their names."""
    shares = tuple(weight / 3.75 for weight in (*WEIGHTS, 0.25))
    for dtype in (torch.float32, torch.bfloat16):
        for case in (
            Case(lt.Average(shares), "linear", based=False, dtype=dtype),
            Case(lt.Slerp(0.3), "slerp", {"t": 0.3}, count=2, dtype=dtype),
            Case(
                lt.TaskArithmetic(scale=0.4, weights=WEIGHTS), "task_arithmetic", {"lambda": 0.4}, dtype=dtype
            ),
            Case(
                lt.Ties(0.5, scale=0.8, weights=WEIGHTS),
                "ties",
                {"density": 0.5, "lambda": 0.8, "normalize": True},
                dtype=dtype,
            ),
            Case(
                lt.Breadcrumbs(0.5, gamma=0.1, weights=WEIGHTS),
                "breadcrumbs",
                {"density": 0.5, "gamma": 0.1},
                dtype=dtype,
                alone=False,
            ),
            Case(lt.ModelStock(), "model_stock", dtype=dtype, alone=False),
        ):
            yield f"{case.theirs} {str(dtype).removeprefix('torch.')}", case
    yield "dare", Case(lt.Dare(0.4, weights=WEIGHTS), "dare_linear", {"density": 0.4, "rescale": True})
    yield (
        "dare ties",
        Case(
            lt.DareTies(0.4, weights=WEIGHTS),
            "dare_ties",
            {"density": 0.4, "rescale": True, "normalize": True},
        ),
    )


CASES = dict(cases())


def wave(index: int, count: int) -> Tensor:
    """Return numbers of a model, with three decimals, so that every platform has the same."""
    return torch.tensor([round(math.sin(step * (index + 1) + index), 3) for step in range(count)])


def model(index: int, dtype: torch.dtype) -> Model:
    """Return a model; ``many`` holds the same row again and again, for means over what is drawn."""
    small = {"w": wave(index, 12).view(3, 4), "bias": wave(index + 4, 5), "one": wave(index + 1, 1)}
    return {
        name: value.to(dtype) for name, value in {**small, "many": wave(index, 6).repeat(ROWS, 1)}.items()
    }


def merged(python: str, folder: Path, models: dict[torch.dtype, list[Model]]) -> tuple[str, dict[str, Model]]:
    """Return mergekit's version and what it makes of ``models``, by the names of the cases."""
    for dtype, each in models.items():
        for index, one in enumerate(each):
            lt.fuse([one], output=folder / f"{dtype}{index}.safetensors")
    configs = {name: case.config(folder) for name, case in CASES.items()}
    (folder / "configs.json").write_text(json.dumps(configs))
    script = Path(__file__).with_name("mergekit_run.py")
    said = subprocess.run([python, str(script), str(folder)], check=True, stdout=subprocess.PIPE, text=True)
    found = {}
    for name in CASES:
        (path,) = (folder / name).glob("*.safetensors")
        found[name] = dict(lt.fuse([path]))  # type: ignore[call-overload]
    return said.stdout.split()[-1], found


def summary(name: str, fused: Model) -> Model:
    """Return what is written down: of a random method the mean over rows, of others what must agree."""
    if name.startswith("dare"):
        return {"mean": fused["many"].double().mean(0)}
    return {key: fused[key] for key in ("w", "bias", "one") if CASES[name].alone or key != "one"}


def main() -> None:
    """Write the numbers down."""
    models = {dtype: [model(index, dtype) for index in range(4)] for dtype in (torch.float32, torch.bfloat16)}
    with tempfile.TemporaryDirectory() as folder:
        version, found = merged(sys.argv[1], Path(folder), models)
    numbers = {
        name: {
            key: [float(f"{each:.9g}") for each in value.flatten().tolist()]
            for key, value in summary(name, fused).items()
        }
        for name, fused in found.items()
    }
    lines = [f" {json.dumps(name)}: {json.dumps(each)}" for name, each in numbers.items()]
    PATH.write_text(
        "{\n" + ",\n".join([f' "mergekit": "{version}", "torch": "{torch.__version__}"', *lines]) + "\n}\n"
    )


if __name__ == "__main__":
    main()
