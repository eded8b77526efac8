"""The space that a search takes by itself: the techniques that are there, in their recommended ranges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback

from lightning_tricks.study.dimensions import Choices, Dimension, Range, dimension
from lightning_tricks.study.ranges import RANGES
from lightning_tricks.study.space import Part, Space
from lightning_tricks.study.subjects import Subject

__all__ = ["recommended"]


def recommended(subject: Subject) -> Space:
    """Return the space of the techniques that ``subject`` has, each within what is worth trying.

    Ranges are widened to what is configured. What is configured as a schedule or a policy stays, and so does
    what the other settings of the technique allow no other value for.

    Raises:
        ValueError: If it has no technique to search.
    """
    found = {}
    for name in subject.names:
        technique = subject.technique(name, {})
        if type(technique).__name__ in RANGES:
            found[name] = Part(optional=True, settings=_settings(subject, name, technique))
    if not found:
        raise ValueError(
            "space must be given for a configuration without techniques that have recommended ranges, got "
            f"{list(subject.names)}"
        )
    return Space(techniques=found)


def _settings(subject: Subject, name: str, technique: Callback) -> dict[str, Dimension]:
    found: dict[str, Dimension] = {}
    for key, given in RANGES[type(technique).__name__].items():
        around = _around(dimension(key, given), getattr(technique, key))
        accepted = [] if around is None else [end for end in around.ends if _accepts(subject, name, key, end)]
        if around is not None and len(accepted) > 1:
            found[key] = Choices(tuple(accepted)) if isinstance(around, Choices) else around
    return found


def _around(given: Dimension, configured: Any) -> Dimension | None:
    """Return ``given``, widened to what is configured; None if that is no plain value."""
    is_number = isinstance(configured, int | float) and not isinstance(configured, bool)
    if isinstance(given, Range):
        if not is_number or (given.log and configured <= 0):
            return None
        low, high = min(given.low, float(configured)), max(given.high, float(configured))
        return replace(given, low=low, high=high)
    if not (is_number or isinstance(configured, str)):
        return None
    return given if given.holds(configured) else Choices((*given.ends, configured))


def _accepts(subject: Subject, name: str, key: str, value: Any) -> bool:
    try:
        subject.technique(name, {key: value})
    except (TypeError, ValueError):
        return False
    return True
