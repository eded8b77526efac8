"""Several averages of the same weights moved at once, so that each weight is read from memory once."""

from __future__ import annotations

from torch import Tensor

from lightning_tricks.core.tensors import lerp_
from lightning_tricks.lifecycle.grouped import Group
from lightning_tricks.lifecycle.shadow import Shadows

__all__ = ["Moves"]


class Moves:
    """Moves of shadows towards the live tensors that are to be made before the next hook."""

    def __init__(self) -> None:
        """Start with none."""
        self._noted: list[tuple[Shadows, float | Tensor]] = []

    def note(self, shadows: Shadows, share: float | Tensor) -> None:
        """Take note that ``shadows`` move by ``share`` of the way."""
        self._noted.append((shadows, share))

    def make_(self) -> None:
        """Make them: together where all shadow the same tensors on a CPU, else one after the other."""
        noted, self._noted = self._noted, []
        shares = [share for _, share in noted if not isinstance(share, Tensor)]
        sets = [shadows.groups() for shadows, _ in noted] if len(shares) == len(noted) > 1 else []
        if not sets or not all(_alike(sets[0], other) for other in sets[1:]):
            for shadows, share in noted:
                shadows.lerp_(share)
            return
        for groups in zip(*sets, strict=True):
            # Of the first tensor all shadows, then of the next: its values are in the cache by then.
            rows = zip(*(group.shadows for group in groups), strict=True)
            live = [tensor for tensor in groups[0].live() for _ in groups]
            lerp_([shadow for row in rows for shadow in row], live, shares * len(groups[0].held))


def _alike(first: list[Group], second: list[Group]) -> bool:
    """Return whether both shadow the same tensors, on the CPU where these are, in lists of the same types."""
    return len(first) == len(second) and all(
        one.shadows[0].is_cpu and not one.apart and one.alike(other)
        for one, other in zip(first, second, strict=True)
    )
