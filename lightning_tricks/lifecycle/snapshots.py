"""Snapshots of weights as files: which there are, which are dropped, and how a resumed run finds them.

A file is named by its number and the checksum of its content: runs that go on from one checkpoint in one
folder, one after the other, overwrite nothing.

A run deletes only files that it wrote itself, once neither its collection nor its latest checkpoint names
them (any of its checkpoints that is still there, where several are kept): whoever resumes from that, or again
from the one that this run was resumed from, finds every snapshot that there was then. So the kept ones live
longer than the run.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_tricks.core.collect import SnapshotPolicy
from lightning_tricks.core.tensors import Model
from lightning_tricks.lifecycle import files
from lightning_tricks.lifecycle.named_files import NamedFiles
from lightning_tricks.lifecycle.processes import in_first
from lightning_tricks.lifecycle.weights import checksum

__all__ = ["Shelf", "Snapshot"]

First = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True)
class Snapshot:
    """One file.

    Attributes:
        name: Its name, without folder.
        size: Its size, in bytes.
        score: The metric of its weights, higher is better; ``None`` if none was needed.
    """

    name: str
    size: int
    score: float | None


class Shelf:
    """The snapshots of one run, and when the next is due; in every process the same.

    Attributes:
        kept: Oldest first.
        folder: Where they lie; made when the first is written.
    """

    def __init__(
        self,
        policy: SnapshotPolicy,
        base: Path,
        first: First,
        *,
        folder: str,
        named: NamedFiles | None = None,
    ) -> None:
        """Start without any, in a folder of ``base`` that no other run has used.

        Args:
            policy: Says when one is due, and which are kept.
            base: The folder of the checkpoints.
            first: Calls a function in the one process that touches files, and returns its result in all.
            folder: What to call the folder, unless it is there already; no two collections of a run may
                share a name.
            named: What checkpoints name, if more than the latest is kept.
        """
        self.kept: list[Snapshot] = []
        self.folder: Path = first(partial(files.free_path, base / folder))
        self._policy = policy
        self._base = base
        self._first = first
        self._checkpoints = named
        self._written = self._taken = self._validations = 0
        self._score: float | None = None
        self._own: set[str] = set()
        self._dropped: list[str] = []
        self._named: frozenset[str] = frozenset()
        self._news = False  # that may make some of the dropped superfluous

    @classmethod
    def of_run(cls, trainer: Trainer, policy: SnapshotPolicy, *, folder: str) -> Self:
        """Return a shelf beside the checkpoints of ``trainer``; to be called by all processes together.

        Raises:
            ValueError: If that is not a local folder.
        """
        base, named = files.checkpoint_folder(trainer), None
        if files.keeps_several(trainer):
            named = NamedFiles(trainer)
        return cls(policy, base, partial(in_first, trainer), folder=folder, named=named)

    def skip(self, *, position: int, epoch: int) -> None:
        """Start at this point of a run: nothing is due for what was before."""
        self._taken = self._policy.moments(position=position, epoch=epoch, validations=self._validations)

    def measured(self, score: float) -> None:
        """Take note of a validation and its metric, higher is better; NaN is no metric."""
        if not math.isnan(score):
            self._score = score
            self._validations += 1

    def take(self, weights: Callable[[], Model], *, position: int, epoch: int) -> None:
        """Take a snapshot if one is due, and drop what is too many or no longer needed.

        To be called by all processes together, and not while a checkpoint is being written.

        Args:
            weights: Gives the tensors, where files are written; asked only if they are kept.
            position: Optimizer steps done.
            epoch: Epochs done.
        """
        before = self._taken
        self.skip(position=position, epoch=epoch)
        if self._taken > before:
            self.add(weights, self._score if self._policy.monitored else None)
        if self._dropped and self._news:
            self._news = False
            self._dropped = self._first(self._delete)

    def _delete(self) -> list[str]:
        """Delete what was dropped and is not needed; return what was dropped and is."""
        named = self._named if self._checkpoints is None else self._checkpoints.needed()
        for name in self._dropped:
            if name not in named:
                (self.folder / name).unlink(missing_ok=True)
        return [name for name in self._dropped if name in named]

    def add(self, weights: Callable[[], Model], score: float | None = None) -> None:
        """Take a snapshot whose metric is ``score``, due or not; else as :meth:`take`."""
        new = Snapshot(f"{self._written + 1:06d}", 0, score)
        kept, dropped = [*self.kept, new], []
        while len(kept) > self._policy.k:
            scores = [-math.inf if snapshot.score is None else snapshot.score for snapshot in kept]
            dropped.append(kept.pop(self._policy.surplus(scores)))
        if new in dropped:
            return
        model = weights()
        kept[-1], written = self._first(lambda: self._store(new, model))
        if written:
            self._own.add(kept[-1].name)
        self.kept, self._written = kept, self._written + 1
        if own := [snapshot.name for snapshot in dropped if snapshot.name in self._own]:
            self._dropped, self._news = self._dropped + own, True

    def _store(self, new: Snapshot, model: Model) -> tuple[Snapshot, bool]:
        """Write the file of ``new``, unless another run has written the same; return whether it did."""
        name = f"{new.name}-{checksum(model)}.pt"
        path = self.folder / name
        try:
            found = replace(new, name=name, size=path.stat().st_size)
            _read(found, self.folder)
        except (FileNotFoundError, ValueError):
            return replace(new, name=name, size=files.save(dict(model), path)), True
        return found, False

    def remember(self) -> None:
        """Take note that a checkpoint is being written, which names the snapshots kept now."""
        self._named, self._news = frozenset(snapshot.name for snapshot in self.kept), True
        if self._checkpoints is not None:
            self._checkpoints.remember(self._named)

    def load(self, snapshot: Snapshot) -> dict[str, Tensor]:
        """Return the tensors of ``snapshot``, mapped from its file.

        Raises:
            FileNotFoundError: If the file is missing; names it.
            ValueError: If it does not hold what was written to it; names it.
        """
        return _read(snapshot, self.folder)

    def saved(self) -> dict[str, Any]:
        """Return the counts, and the names, sizes and scores of the snapshots, but not their tensors."""
        return {
            "folder": self.folder.name,
            "kept": [asdict(snapshot) for snapshot in self.kept],
            "policy": repr(self._policy),
            "counts": [self._written, self._taken, self._validations, self._score],
        }

    def restore(self, state: dict[str, Any], beside: Path | None, *, position: int, epoch: int) -> None:
        """Take up the counts and the snapshots of a checkpoint again.

        The snapshots are looked for beside the checkpoint first, then where this run writes. If they lie
        elsewhere than this run writes, they are copied, and the other run keeps its own; else they stay, for
        the checkpoint may be resumed from again.

        Args:
            state: What :meth:`saved` returned.
            beside: The folder of the checkpoint, if it is known.
            position: Optimizer steps done.
            epoch: Epochs done.

        Raises:
            FileNotFoundError: If one is missing; names it.
            ValueError: If one does not hold what was written to it; names it.
        """
        self._written, self._taken, self._validations, self._score = state["counts"]
        if state["policy"] != repr(self._policy):
            self.skip(position=position, epoch=epoch)  # another policy has counted other moments
        self.kept = [Snapshot(**entry) for entry in state["kept"]]
        if self.kept:
            self.folder, copied = self._first(lambda: self._find(self._base / state["folder"], beside))
            self._own = {snapshot.name for snapshot in self.kept} if copied else set()
        elif beside is None or beside.resolve() == self._base.resolve():
            self.folder = self._base / state["folder"]  # elsewhere one of that name is another run's

    def _find(self, folder: Path, beside: Path | None) -> tuple[Path, bool]:
        """Return the folder in which the snapshots are that were in ``folder``; whether as copies."""
        places = [folder] if beside is None else [beside / folder.name, folder]
        source = next((place for place in places if (place / self.kept[0].name).exists()), places[0])
        for snapshot in self.kept:
            _read(snapshot, source)
        if source.resolve() == folder.resolve():
            return folder, False
        folder = files.free_path(folder)
        folder.mkdir(parents=True)
        for snapshot in self.kept:
            _copy(source / snapshot.name, folder / snapshot.name)
        return folder, True


def _read(snapshot: Snapshot, folder: Path) -> dict[str, Tensor]:
    path = folder / snapshot.name
    if not path.exists():
        raise FileNotFoundError(
            f"{path} must be there, because the checkpoint names it as a snapshot, but it is not: put it "
            "back, resume from the latest checkpoint of the run, or give the technique another label to "
            "collect anew"
        )
    if (size := path.stat().st_size) != snapshot.size:
        raise ValueError(f"{path} must have {snapshot.size} bytes, as when it was written, got {size}")
    content: dict[str, Tensor] = files.load(path)
    found = checksum(content)
    if not snapshot.name.endswith(f"-{found}.pt"):
        raise ValueError(
            f"{path} must hold the weights that its name stands for, got others (checksum {found}): it is "
            "damaged; resume from another checkpoint"
        )
    return content


def _copy(source: Path, target: Path) -> None:
    try:
        # Safe, because a snapshot is never changed in place: who replaces one name leaves the other alone.
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
