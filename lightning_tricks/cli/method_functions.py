"""What functions of the user's own tell a method of fusion: how good a model is, and the data it looks at."""

from __future__ import annotations

from lightning_tricks.averaging.lengths import measured
from lightning_tricks.cli.named_objects import function_named
from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import Evaluate, FusionMethod
from lightning_tricks.fusion.probe import Probe, needs_probe

__all__ = ["evaluation", "probe_of"]


def evaluation(name: str, method: FusionMethod) -> Evaluate:
    """Return what ``--evaluate`` names, for ``method``: by the metric and in the mode that it wants.

    Of a method without mode, higher is better.

    Raises:
        ValueError: If there is no such function, or ``method`` evaluates nothing.
    """
    function = function_named("evaluate", name)
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
    found = function_named("probe", name)()
    if not isinstance(found, Probe):
        raise TypeError(f"probe must name a function that returns a Probe, got {found!r:.80} from {name!r}")
    return found
