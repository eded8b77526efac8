"""Argument checks that say three things: the name, the rule and the value."""

import difflib
import math
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

__all__ = [
    "finite",
    "flag",
    "in_range",
    "listed",
    "nearest",
    "number",
    "objective",
    "one_of",
    "text",
    "whole",
]


def number(name: str, value: Any) -> float:
    """Return ``value`` as a float.

    Raises:
        TypeError: If ``value`` is not a plain number. A bool is none, nor is a NumPy scalar, which could be
            read back from no checkpoint.
        ValueError: If ``value`` is NaN, or an int that no float can hold.
    """
    if type(value) not in (int, float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        real = float(value)
    except OverflowError:
        real = math.nan
    if math.isnan(real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return real


def in_range(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return ``value`` as a float that lies between ``low`` and ``high``.

    Args:
        name: What the user calls the value.
        value: The value to check.
        low: Lower end of the range.
        high: Upper end of the range.
        open_low: Whether ``low`` itself is outside.
        open_high: Whether ``high`` itself is outside.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If ``value`` lies outside.

    Example:
        >>> in_range("decay", 1.5, 0.0, 1.0)
        Traceback (most recent call last):
        ValueError: decay must lie in [0.0, 1.0], got 1.5
    """
    real = number(name, value)
    above = real > low if open_low else real >= low
    below = real < high if open_high else real <= high
    if not (above and below):
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ValueError(f"{name} must lie in {left}{low}, {high}{right}, got {value!r}")
    return real


def finite(name: str, value: Any) -> float:
    """Return ``value`` as a float that is neither NaN nor infinite.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If it is not finite.
    """
    return in_range(name, value, -math.inf, math.inf, open_low=True, open_high=True)


def whole(name: str, value: Any, low: int = 0) -> int:
    """Return ``value`` as an int of at least ``low`` that fits 64 bits.

    Raises:
        TypeError: If ``value`` is not an int.
        ValueError: If ``value`` is below ``low`` or too large.
    """
    if type(value) is not int:
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value!r}")
    if value > sys.maxsize:
        raise ValueError(f"{name} must be at most {sys.maxsize}, got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """Return ``value`` if it is a bool.

    Raises:
        TypeError: If it is anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def text(name: str, value: Any) -> str:
    """Return ``value`` if it is a text that is not empty.

    Raises:
        TypeError: If it is of another type.
        ValueError: If it is empty.
    """
    if type(value) is not str:
        raise TypeError(f"{name} must be text, got {value!r}")
    if not value:
        raise ValueError(f"{name} must not be empty, got {value!r}")
    return value


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        ValueError: If it is not; names the nearest choice.
    """
    if not isinstance(value, str) or value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        hint = nearest(str(value), choices, count=1)
        meant = f"; did you mean {hint[0]!r}?" if hint else ""
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}{meant}")
    return value


def objective(monitor: Any, mode: Any) -> None:
    """Check the name of a metric and which way it is better; ``None`` for not told.

    Raises:
        TypeError: If ``monitor`` is no text.
        ValueError: If it is empty, or ``mode`` is neither ``"min"`` nor ``"max"``.
    """
    if monitor is not None:
        text("monitor", monitor)
    if mode is not None:
        one_of("mode", mode, ("min", "max"))


def nearest(word: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """Return the ``count`` names among ``known`` that look most like ``word``, best first.

    Example:
        >>> nearest("max_nrom", ["params", "max_norm"], count=1)
        ['max_norm']
        >>> nearest("adamw", ["Adam", "AdamW"], count=1)  # other case is no other name
        ['AdamW']
    """
    names = list(known)
    close = difflib.get_close_matches(word, names, n=len(names) or 1, cutoff=0.4)
    return sorted(close, key=lambda name: name.lower() != word.lower())[:count]


def listed(names: Sequence[str]) -> str:
    """Return the first five of ``names`` for an error, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more
