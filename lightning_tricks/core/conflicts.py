"""Who owns what: two owners of one slot for the same tensors are an error before training starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

__all__ = ["GRADIENT_ORDER", "Claim", "ConflictError", "check_claims", "check_order"]

GRADIENT_ORDER = ("penalty", "surgery", "centralization", "noise", "clipping", "decay")
"""The order in which work on gradients is right: what adds to them first; last what changes weights, since
clipping may cancel the step."""


class ConflictError(ValueError):
    """Two parts of a run fight over the same thing."""


@dataclass(frozen=True)
class Claim:
    """That ``owner`` alone decides ``slot`` for some parameters.

    Attributes:
        slot: What is owned, such as ``"lr"`` or ``"clipping"``.
        owner: Who owns it, as the user would name it.
        parameters: The ``id`` of each parameter concerned; ``None`` stands for all.
        remedy: What the user can do to release the slot, as an imperative clause.
    """

    slot: str
    owner: str
    parameters: frozenset[int] | None
    remedy: str

    def overlaps(self, other: Claim) -> bool:
        """Return whether both claim ``slot`` for at least one common parameter."""
        if self.slot != other.slot:
            return False
        if self.parameters is None or other.parameters is None:
            return True
        return not self.parameters.isdisjoint(other.parameters)


def check_claims(claims: Iterable[Claim]) -> None:
    """Accept claims of which no two overlap.

    Raises:
        ConflictError: Names both owners, the slot, and what to remove.

    Example:
        >>> check_claims([Claim("lr", "A", None, "remove A"), Claim("lr", "B", None, "remove B")])
        Traceback (most recent call last):
        lightning_tricks.core.conflicts.ConflictError: 'lr' must have one owner, got A and B: \
remove A, or remove B
    """
    for first, second in combinations(claims, 2):
        if first.overlaps(second):
            raise ConflictError(
                f"{first.slot!r} must have one owner, got {first.owner} and {second.owner}: "
                f"{first.remedy}, or {second.remedy}"
            )


def check_order(stages: Sequence[tuple[str, str]]) -> None:
    """Accept work on gradients listed in the order of :data:`GRADIENT_ORDER`.

    Args:
        stages: Pairs of an owner and its stage, in the order in which they will act.

    Raises:
        ConflictError: Gives the right order of the owners.
    """
    right = sorted(stages, key=lambda pair: GRADIENT_ORDER.index(pair[1]))
    if list(stages) != right:
        got, wanted = (", ".join(owner for owner, _ in pairs) for pairs in (stages, right))
        raise ConflictError(f"work on gradients must be listed in the order {wanted}; got {got}")
