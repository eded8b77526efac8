"""Optimizers by name or class, and the options that each takes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_tricks.core import checks
from lightning_tricks.core.extras import extra

__all__ = ["check_options", "default_of", "optimizer_class", "options_of"]

_SCHEDULE_FREE = ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree")


def optimizer_class(optimizer: str | type[Optimizer]) -> type[Optimizer]:
    """Return the class that ``optimizer`` is or names.

    Args:
        optimizer: A class, the name of one in ``torch.optim`` or in the package ``schedulefree``, or the
            import path of any other.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        TypeError: If it is no optimizer.
        ValueError: If there is none of this name; gives the nearest.

    Example:
        >>> optimizer_class("SGD")
        <class 'torch.optim.sgd.SGD'>
    """
    found: object = optimizer
    if isinstance(optimizer, str):
        found = _named(optimizer)
    if not (isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer):
        raise TypeError(f"optimizer must be an optimizer's name or class, got {optimizer!r}")
    return found


def _named(name: str) -> object:
    own = [each for each, kind in vars(torch.optim).items() if isinstance(kind, type)]
    if name in own:
        return getattr(torch.optim, name)
    if name in _SCHEDULE_FREE:
        with extra("schedulefree"):
            import schedulefree
        return getattr(schedulefree, name)
    path, _, last = name.rpartition(".")
    if path:
        try:
            return getattr(importlib.import_module(path), last)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"optimizer must be a path that can be imported, got {name!r}: {error}"
            ) from None
    known = [each for each in (*own, *_SCHEDULE_FREE) if each != "Optimizer"]
    close = checks.nearest(name, known, count=1)
    meant = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
    raise ValueError(f"optimizer must be one of torch.optim or schedulefree, got {name!r}; {meant}")


def options_of(kind: type[Optimizer]) -> Mapping[str, inspect.Parameter] | None:
    """Return the options of ``kind``; ``None`` if it takes any."""
    found = inspect.signature(kind).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in found.values()):
        return None
    return {name: each for name, each in list(found.items())[1:] if each.kind is not each.VAR_POSITIONAL}


def check_options(name: str, kind: type[Optimizer], options: Iterable[str]) -> None:
    """Accept ``options``, what the user calls ``name``, if ``kind`` takes each of them.

    Raises:
        ValueError: If it does not take one; gives the nearest.
    """
    known = options_of(kind)
    if known is None:
        return
    for option in options:
        if option not in known:
            close = checks.nearest(option, known, count=1)
            meant = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            among = f" in {options!r}" if isinstance(options, Mapping) else ""
            raise ValueError(f"{name} must be an option of {kind.__name__}, got {option!r}{among}; {meant}")


def default_of(kind: type[Optimizer], option: str) -> Any:
    """Return what ``kind`` takes for ``option`` if nothing is given; ``None`` if it has none."""
    parameter = inspect.signature(kind).parameters.get(option)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default
