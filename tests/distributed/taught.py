"""A student whose projections of hidden features are trained in several processes, beside one process.

    python -m tests.distributed.taught FOLDER

asserts that a run by DDP, and one over shards, ends at the weights of one process, and that projections which
each process would hold whole beside shards are refused.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from lightning_tricks import Teacher, Teachers
from tests.contract.mixing import Student
from tests.distributed.cells import whole_weights
from tests.distributed.worlds import WORLDS, Part, Sharded, Shared
from tests.toys import seed, trainer


def taught(kind: type[Shared], *, shards: bool = True) -> Shared:
    """Return a student of this kind that matches hidden features of a wider teacher."""

    class Taught(Student, kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            seed(7)
            network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()
            self.teachers = Teachers(Teacher(network, features={"body.0": "0", "head": "2"}))
            self.build_projections(torch.zeros(2, 4).double())
            self.double()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.body(inputs))

        def configure_model(self) -> None:
            super().configure_model()
            if shards and self.device_mesh is not None:
                fully_shard(self.feature_projections[0], mesh=self.device_mesh["data_parallel"])

    return Taught()


def fit(kind: type[Shared], settings: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """Train and return the whole weights."""
    module = taught(kind, **options)
    runner = trainer(max_epochs=2, **settings)
    runner.fit(module, Part())
    return whole_weights(runner)


def main(folder: Path) -> None:
    """Run all of them."""
    found = {
        name: fit(WORLDS[name].module, WORLDS[name].trainer_settings(folder)) for name in ("DDP", "FSDP2")
    }
    with pytest.raises(ValueError, match="projections must be sharded as the other layers are, got whole"):
        fit(Sharded, WORLDS["FSDP2"].trainer_settings(folder), shards=False)
    for name, weights in found.items():
        torch.save(weights, folder / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
