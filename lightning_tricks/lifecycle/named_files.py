"""Which files the checkpoints name that a run keeps: where several are kept, each may name others."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer

__all__ = ["NamedFiles"]

Mark = tuple[int, int] | None
"""Of a checkpoint: what changes when it is written anew; ``None`` if it is not there yet."""


class NamedFiles:
    """What the checkpoints name that callbacks of a Trainer have written and not deleted again.

    Where a checkpoint is written to is not told to those who are asked for what it shall hold. So the paths
    that callbacks know are looked at before and after. If somebody else has written one, what that names is
    needed for good. To be used in the process that touches files.
    """

    def __init__(self, trainer: Trainer) -> None:
        """Begin before the first checkpoint."""
        self._trainer = trainer
        self._by_path: dict[Path, frozenset[str]] = {}
        self._for_good: frozenset[str] = frozenset()
        self._before: dict[Path, Mark] = {}
        self._writes = 0
        self._now: frozenset[str] = frozenset()

    def remember(self, names: frozenset[str]) -> None:
        """Take note that a checkpoint is being written that holds ``names``."""
        if names != self._now:
            self.needed()
        if not self._writes:
            self._before = self._marks()
        self._writes, self._now = self._writes + 1, names

    def needed(self) -> frozenset[str]:
        """Return what is named by checkpoints that are there; not while one is being written."""
        marks = self._marks()
        if self._writes:
            written = [path for path, mark in marks.items() if self._before.get(path, "unknown") != mark]
            for path in written:
                late = self._before.get(path) is None  # in the background, so that it may be the one before
                self._by_path[path] = self._now.union(self._by_path.get(path, ()) if late else ())
            if len(written) < self._writes:
                self._for_good |= self._now
            self._writes = 0
        self._by_path = {p: names for p, names in self._by_path.items() if p in marks or p.exists()}
        return self._for_good.union(self._now, *self._by_path.values())

    def _marks(self) -> dict[Path, Mark]:
        known: set[str] = set()
        for saver in self._trainer.checkpoint_callbacks:
            known |= {*getattr(saver, "best_k_models", ())}
            known |= {getattr(saver, name, "") for name in ("best_model_path", "last_model_path")}
        return {Path(path): _mark(Path(path)) for path in known - {""}}


def _mark(path: Path) -> Mark:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
