"""Snapshots of several averages as files, which can be read without the run that has written them.

A file holds tensors alone:

    gammas               the powers of the averages; float64, shape (averages,)
    updates              t, the real steps that they have seen
    every                after how many of them they move
    average/0/NAME ...   the averages, by gamma and name
    live/NAME            what was not averaged: buffers, frozen parameters

The index of a folder names its files in order; what lies beside them belongs to a run that was broken off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.lifecycle import files

__all__ = ["FOLDER", "Moment", "Trajectory", "as_stored", "write_index"]

FOLDER = "post_hoc_ema"
_INDEX = "index.json"


def as_stored(values: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return ``values`` in ``dtype``, where that can hold them.

    Args:
        values: Tensors by name; one that has several names is converted once.
        dtype: Of floating tensors, narrower than theirs; ``None`` to leave all as they are. What is complex,
            or has an entry that is beyond its range or no number, stays as it is.
    """
    if dtype is None:
        return dict(values)
    most = torch.finfo(dtype).max
    stored = {
        id(value): value.to("cpu", dtype)
        for value in {id(value): value for value in values.values()}.values()
        if value.is_floating_point() and bool((value.abs() <= most).all())
    }
    return {name: stored.get(id(value), value) for name, value in values.items()}


def write_index(folder: Path, names: Sequence[str]) -> None:
    """Let the snapshots of ``folder`` be the files of these names, oldest first.

    A folder that is not there is made for some, not for none.
    """
    if not (names or folder.exists()):
        return
    with files.written_whole(folder / _INDEX) as part:
        part.write_text(json.dumps({"snapshots": list(names)}, indent=1) + "\n")


@dataclass(frozen=True)
class Moment:
    """The averages of one moment of a run.

    Attributes:
        name: The file's, or what else it is called.
        gammas: Their powers.
        updates: The real steps that they have seen.
        every: After how many of them they move.
        averages: The averages by name, for each power.
        live: What was not averaged, by name.
    """

    name: str
    gammas: tuple[float, ...]
    updates: int
    every: int
    averages: Sequence[Mapping[str, Tensor]]
    live: Mapping[str, Tensor]

    @property
    def precision(self) -> float:
        """How far rounding may have put an entry of the averages off, as a share of it."""
        kinds = {value.dtype for average in self.averages for value in average.values()}
        return max((torch.finfo(kind).eps / 2 for kind in kinds), default=0.0)

    def as_tensors(self) -> dict[str, Tensor]:
        """Return what its file holds."""
        averaged = {
            f"average/{index}/{name}": value
            for index, average in enumerate(self.averages)
            for name, value in average.items()
        }
        return {
            "gammas": torch.tensor(self.gammas, dtype=torch.float64),
            "updates": torch.tensor(self.updates),
            "every": torch.tensor(self.every),
            **averaged,
            **{f"live/{name}": value for name, value in self.live.items()},
        }

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return that of a file, with tensors that are read when they are used.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds something else.
        """
        held = files.load(path)
        if not isinstance(held, dict) or not {"gammas", "updates", "every"} <= held.keys():
            raise ValueError(f"{path} must be a snapshot of {FOLDER}, but it holds something else")
        gammas = tuple(held["gammas"].tolist())
        averages = [_part(held, f"average/{index}/") for index in range(len(gammas))]
        numbers = int(held["updates"]), int(held["every"])
        return cls(path.name, gammas, *numbers, averages, _part(held, "live/"))

    def value(self, index: int, name: str) -> Tensor:
        """Return the average of this index of the tensor ``name``.

        That of a parameter which was frozen until then is its value.

        Raises:
            ValueError: If it holds no such tensor.
        """
        average = self.averages[index]
        if name not in average and name not in self.live:
            raise ValueError(f"{self.name} must hold {name!r}, as later snapshots do, but it does not")
        return average[name] if name in average else self.live[name]


def _part(held: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Trajectory:
    """The snapshots of a run, oldest first, at least one."""

    folder: Path
    moments: Sequence[Moment]

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Self:
        """Return that of a folder of snapshots, or of the one folder of snapshots beside checkpoints.

        Raises:
            FileNotFoundError: If there is none, or a file is missing.
            ValueError: If there are several folders, no snapshots in it, or a file that holds something else.
        """
        folder = _folder(Path(path))
        try:
            names = json.loads((folder / _INDEX).read_text())["snapshots"]
            moments = [Moment.read(folder / name) for name in names]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder / _INDEX} must name snapshots, but cannot be read: {error}") from error
        updates = [moment.updates for moment in moments]
        if not moments or updates != sorted(set(updates)):
            raise ValueError(f"{folder} must hold snapshots, each after the one before, got steps {updates}")
        return cls(folder, moments)

    @property
    def updates(self) -> list[int]:
        """The real steps that averages have seen at each moment."""
        return [moment.updates for moment in self.moments]

    def until(self, step: int) -> Self:
        """Return that of the run up to ``step``, in real steps that averages have seen.

        Raises:
            TypeError: If ``step`` is no whole number.
            ValueError: If no snapshot was taken at ``step``, which would miss the last weights before it.
        """
        if checks.whole("step", step) not in self.updates:
            near = sorted(sorted(self.updates, key=lambda each: abs(each - step))[:3])
            raise ValueError(f"step must be that of a snapshot, nearest {str(near)[1:-1]}, got {step!r}")
        return type(self)(self.folder, [moment for moment in self.moments if moment.updates <= step])


def _folder(path: Path) -> Path:
    if (path / _INDEX).exists():
        return path
    found = sorted(index.parent.name for index in path.glob(f"{FOLDER}*/{_INDEX}"))
    if not found:
        raise FileNotFoundError(
            f"{path} must be a folder of snapshots with their {_INDEX}, or have such a {FOLDER}, got neither"
        )
    if len(found) > 1:
        raise ValueError(f"{path} must hold one folder of {FOLDER}, got {', '.join(found)}: name one of them")
    return path / found[0]
