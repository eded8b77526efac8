"""What a study is given: seeds, and techniques by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Literal, cast

from lightning.pytorch import Callback

from lightning_tricks.core import checks
from lightning_tricks.lifecycle.technique import Technique

__all__ = ["Given", "checked_mode", "checked_seeds", "made_from", "name_of", "named"]

Given = Callback | Callable[[], Callback]
"""A technique: a callback, which is copied for each trial, or a function that makes one."""


def checked_mode(metric: str, mode: str | None) -> Literal["min", "max"]:
    """Return ``mode``, or ``"min"`` if it is not given for a loss.

    Raises:
        ValueError: If it is another, or none for what is not called a loss.
    """
    if mode is None:
        if "loss" not in metric.lower():
            raise ValueError(
                f"mode must be given for {metric!r}, if that is its name, 'min' where less of it is better, "
                "or 'max', got None: only of a loss is it known"
            )
        return "min"
    return cast(Literal["min", "max"], checks.one_of("mode", mode, ("min", "max")))


def checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Return different seeds, at least one: those given, or as many from 0.

    Raises:
        TypeError: If one is no whole number.
        ValueError: If they are no such.
    """
    if isinstance(seeds, int):
        return tuple(range(checks.whole("seeds", seeds, 1)))
    found = tuple(checks.whole("seeds", seed) for seed in seeds)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds must be different ones, got {seeds!r}")
    return found


def name_of(callback: Callback) -> str:
    """Return a callback's name: its class's, with a technique's label."""
    return callback.state_key if isinstance(callback, Technique) else type(callback).__name__


def named(techniques: Mapping[str, Given] | Sequence[Callback]) -> dict[str, Given]:
    """Return techniques by name; callbacks of different classes by that of their class.

    Raises:
        TypeError: If one is neither a callback nor a function.
        ValueError: If there is none, or names are lacking.
    """
    if isinstance(techniques, Mapping):
        found = dict(techniques)
    else:
        names = list(map(name_of, techniques))
        if len(set(names)) < len(names):
            raise ValueError(f"techniques must be given by name where two are of one class, got {names}")
        found = dict(zip(names, techniques, strict=True))
    if not found:
        raise ValueError("techniques must hold at least one, got none")
    for name, each in found.items():
        if not (isinstance(each, Callback) or callable(each)):
            raise TypeError(
                f"techniques must be callbacks or functions that make one, got {name}={each!r:.80}"
            )
    return found


def made_from(technique: Given) -> Callback:
    """Return a new callback."""
    return deepcopy(technique) if isinstance(technique, Callback) else technique()
