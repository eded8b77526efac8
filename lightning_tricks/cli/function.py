"""Functions of the user's own that an option names as ``MODULE:FUNCTION``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from lightning_tricks.averaging.lengths import measured
from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import Evaluate, FusionMethod
from lightning_tricks.fusion.probe import Probe, needs_probe

__all__ = ["evaluation", "function_of", "probe_of"]


def function_of(option: str, name: str) -> Callable[..., Any]:
    """Return the function that ``name``, the value of ``option``, names.

    Raises:
        ValueError: If there is none.
    """
    module, _, function = name.partition(":")
    if not (module and function):
        raise ValueError(f"{option} must be written as MODULE:FUNCTION, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as ``python -m`` does, since it is the user's own
    try:
        found: Callable[..., Any] = getattr(import_module(module), function)
    except (AttributeError, ImportError) as error:
        raise ValueError(
            f"{option} must name a function that can be imported, got {name!r}: {error}"
        ) from error
    return found


def evaluation(name: str, method: FusionMethod) -> Evaluate:
    """Return what ``--evaluate`` names, for ``method``: by the metric and in the mode that it wants.

    Of a method without mode, higher is better.

    Raises:
        ValueError: If there is no such function, or ``method`` evaluates nothing.
    """
    function = function_of("evaluate", name)
    if method.objective is None:
        raise ValueError(f"evaluate must be left out for {method!r}, which evaluates nothing, got {name!r}")
    monitor, mode = method.objective

    def evaluate(model: Model) -> float:
        metrics = measured(function, dict(model))
        if monitor is None and len(metrics) != 1:
            raise ValueError(
                f"monitor must be one of what {name} returns, {checks.listed(list(metrics))}, got None: give "
                "--monitor"
            )
        known = checks.one_of("monitor", monitor, list(metrics)) if monitor else next(iter(metrics))
        return -metrics[known] if mode == "min" else metrics[known]

    return evaluate


def probe_of(name: str, method: FusionMethod) -> Probe:
    """Return what the function returns that ``--probe`` names, for ``method`` to look at.

    Raises:
        TypeError: If it is no probe.
        ValueError: If there is no such function, or ``method`` looks at no data.
    """
    if not needs_probe(method):
        raise ValueError(f"probe must be left out for {method!r}, which looks at no data, got {name!r}")
    found = function_of("probe", name)()
    if not isinstance(found, Probe):
        raise TypeError(f"probe must name a function that returns a Probe, got {found!r:.80} from {name!r}")
    return found
