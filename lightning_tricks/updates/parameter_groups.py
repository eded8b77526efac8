"""Parameter groups of an optimizer: each parameter in one, by layer, override, and whether it decays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_tricks.core.checks import listed
from lightning_tricks.core.exempt import EMBEDDINGS, exempt_from_decay
from lightning_tricks.core.partition import written
from lightning_tricks.core.select import select
from lightning_tricks.lifecycle.optimizer_names import default_of, optimizer_class
from lightning_tricks.updates.layer_decay import layers_of
from lightning_tricks.updates.optimizer_settings import OptimizerSettings

__all__ = ["Group", "build_optimizer", "divide", "groups_of"]


@dataclass
class Group:
    """A parameter group before there is an optimizer.

    Attributes:
        name: What it is called; no other group of the optimizer is.
        holds: What is in it, in words.
        members: Its parameters by name.
        options: What is set for it alone.
    """

    name: str
    holds: str
    options: dict[str, Any]
    members: dict[str, nn.Parameter] = field(default_factory=dict)


def groups_of(
    module: nn.Module,
    settings: OptimizerSettings,
    members: Mapping[str, nn.Parameter],
    shapes: Mapping[nn.Parameter, torch.Size] | None = None,
) -> list[Group]:
    """Return the groups of ``members``, ordered by layer, then by override, those that decay first.

    Args:
        module: The whole network.
        settings: What the optimizer is to be.
        members: Parameters of ``module`` by name.
        shapes: Shapes of parameters that do not tell them, such as the flat pieces of FSDP1.

    Raises:
        ValueError: If a pattern matches nothing.
    """
    kind = optimizer_class(settings.optimizer)
    lr = default_of(kind, "lr") if settings.lr is None else settings.lr
    decay = default_of(kind, "weight_decay") if settings.weight_decay is None else settings.weight_decay
    exempt = exempt_from_decay(module, shapes) if decay else set()
    layered = settings.layer_decay < 1.0
    layers, depths = layers_of(module, settings.layers) if layered else ([], {})
    if layered and len(layers) < 2:
        raise ValueError(
            f"layers must be given with layer_decay={settings.layer_decay!r}, for none can be told apart in "
            f"{type(module).__name__}: name them from input to output, got {settings.layers!r}"
        )
    patterns = list(settings.overrides)
    overridden: dict[nn.Parameter, int] = {}
    among = set(members.values())
    for place in reversed(range(len(patterns))):
        matched = among.intersection(select(module, patterns[place], name="overrides").values())
        if not matched:
            raise ValueError(
                f"overrides must match a parameter of these settings, got {patterns[place]!r}, which others "
                "took"
            )
        overridden |= dict.fromkeys(matched, place)
    found: dict[tuple[int, int, bool], Group] = {}
    for name, parameter in members.items():
        depth, place = depths.get(parameter, -1), overridden.get(parameter, len(patterns))
        own = dict(settings.overrides[patterns[place]]) if place < len(patterns) else {}
        spared = parameter in exempt and "weight_decay" not in own
        key = (depth, place, spared)
        if key not in found:
            options: dict[str, Any] = {"weight_decay": 0.0} if spared else {}
            if layered:
                options["lr"] = lr * settings.layer_decay ** (len(layers) - 1 - depth)
            words = [f"layer {depth}"] * layered + patterns[place : place + 1] + ["no decay"] * spared
            what = patterns[place : place + 1] or layers[max(depth, 0) : depth + 1] or [settings.params]
            holds = [written(each) for each in what if each != "*"]
            split = exempt and "weight_decay" not in own
            holds += ["biases, norms, embeddings" if spared else "weights"] if split else []
            found[key] = Group(", ".join(words) or "weights", ": ".join(holds) or "*", {**options, **own})
        found[key].members[name] = parameter
    return [found[key] for key in sorted(found)]


def divide(
    module: nn.Module,
    settings: Sequence[OptimizerSettings],
    shapes: Mapping[nn.Parameter, torch.Size] | None = None,
) -> list[dict[str, nn.Parameter]]:
    """Return the parameters that each of ``settings`` is for: those it matches and none before it took.

    Muon takes matrices that are no embeddings, and leaves all else to the next.

    Raises:
        ValueError: If a pattern matches nothing, or one of ``settings`` or a parameter is left over.
    """
    tables = {p for part in module.modules() if isinstance(part, EMBEDDINGS) for p in part.parameters()}
    left = select(module, "*", name="the module")
    found: list[dict[str, nn.Parameter]] = []
    for index, each in enumerate(settings):
        taken = {name: p for name, p in select(module, each.params).items() if name in left}
        if each.optimizer == "Muon":
            ndim = {name: len((shapes or {}).get(p, p.shape)) for name, p in taken.items()}
            taken = {name: p for name, p in taken.items() if ndim[name] == 2 and p not in tables}
        if not taken:
            only = ", for Muon a matrix," if each.optimizer == "Muon" else ""
            raise ValueError(
                f"optimizer_settings[{index}] must be for a parameter{only} that none before it takes, got "
                f"{each!r}"
            )
        left = {name: p for name, p in left.items() if name not in taken}
        found.append(taken)
    if left:
        raise ValueError(
            f"optimizer_settings must be for each parameter, got none for {listed(list(left))}: widen "
            "params, or add OptimizerSettings(...) for the rest, as the last of several"
        )
    return found


def build_optimizer(settings: OptimizerSettings, groups: list[Group]) -> Optimizer:
    """Return the optimizer of ``groups``.

    Raises:
        ValueError: If it takes one group only.
    """
    kind = optimizer_class(settings.optimizer)
    if issubclass(kind, torch.optim.LBFGS) and len(groups) > 1:
        raise ValueError(
            f"LBFGS takes a single group: leave out layer_decay and overrides, got {len(groups)} groups"
        )
    given = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    options = {**settings.options, **{name: value for name, value in given.items() if value is not None}}
    parts = [
        {"params": list(group.members.values()), **_plain(group.options)}
        | ({"name": group.name} if len(groups) > 1 else {})
        for group in groups
    ]
    return kind(parts, **_plain(options))


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    # YAML has no tuples.
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
