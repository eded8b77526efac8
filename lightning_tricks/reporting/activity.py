"""What a technique is set to, when it acts, and what it works on, in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.lifecycle.written import written

if TYPE_CHECKING:
    from lightning_tricks.core.conflicts import Claim

__all__ = ["changed", "in_words", "mixed_in", "order", "plain", "settings_of", "sizes_of", "touched"]

_MOMENTS = {
    "build": "layers are built",
    "initialize": "first weights are set",
    "on_train_batch_start": "a batch starts",
    "on_before_backward": "before gradients",
    "on_after_backward": "after gradients",
    "before_step": "before a step",
    "on_before_optimizer_step": "on gradients of a step",
    "after_step": "after a step",
    "after_update": "on updated weights",
    "on_train_batch_end": "a batch ends",
    "on_validation_start": "a validation starts",
    "on_validation_end": "a validation ends",
    "finish": "training ends",
}


def order(techniques: Sequence[Technique]) -> list[tuple[str, str]]:
    """Return the moments of a run, one after another, each with the techniques that act there, likewise.

    Example:
        >>> from lightning_tricks import GradientClip, GradientNoise
        >>> order([GradientNoise(), GradientClip(max_norm=1.0)])
        [('on gradients of a step', 'GradientNoise, GradientClip')]
    """
    rows = []
    for hook, words in _MOMENTS.items():
        base = getattr(Technique, hook)
        acting = [each for each in techniques if getattr(type(each), hook) is not base]
        if hook == "finish":
            acting.sort(key=lambda each: each.finish_order)
        elif hook in ("build", "initialize"):
            acting.sort(key=lambda each: each.build_order)
        if acting:
            rows.append((words, ", ".join(each.state_key for each in acting)))
    return rows


def touched(
    claims: Iterable[Claim], beside: Iterable[Tensor | nn.Module], sizes: Mapping[Tensor | nn.Module, int]
) -> str:
    """Return in words what a technique works on.

    Args:
        claims: What it owns.
        beside: What it works on or reads besides.
        sizes: As of :func:`sizes_of`.

    Example:
        >>> from lightning_tricks.core.conflicts import Claim
        >>> layer = nn.Linear(4, 3)
        >>> sizes = {layer.weight: 12, layer.bias: 3, layer: 0}
        >>> touched([Claim("clipping", "A", frozenset({id(layer.weight)}), "")], [layer.bias], sizes)
        '2 tensors, 15 entries'
        >>> touched([Claim("dropout", "A", frozenset({id(layer)}), "")], [], sizes)
        '1 layer'
        >>> touched([Claim("lr", "A", None, "")], [], sizes), touched([], [], sizes)
        ('all', '')
    """
    owned = [claim.parameters for claim in claims]
    if any(ids is None for ids in owned):
        return "all"
    wanted = frozenset(map(id, beside)).union(*(ids for ids in owned if ids is not None))
    found = [each for each in sizes if id(each) in wanted]
    tensors = [sizes[each] for each in found if isinstance(each, Tensor)]
    layers = len(found) - len(tensors)
    words = [f"{len(tensors):,} tensor{'s' * (len(tensors) != 1)}, {sum(tensors):,} entries"] * bool(tensors)
    return " and ".join([*words, *[f"{layers:,} layer{'s' * (layers != 1)}"] * bool(layers)])


def sizes_of(module: nn.Module, whole: Mapping[nn.Parameter, torch.Size]) -> dict[Tensor | nn.Module, int]:
    """Return the entries of each parameter and buffer of ``module``, and 0 for each layer.

    Args:
        module: It may be wrapped and divided.
        whole: The shapes of parameters that do not tell theirs.
    """
    sizes: dict[Tensor | nn.Module, int] = dict.fromkeys(module.modules(), 0)
    for each in (*module.parameters(), *module.buffers()):
        shape = whole.get(each) if isinstance(each, nn.Parameter) else None
        sizes[each] = 0 if is_lazy(each) else each.numel() if shape is None else shape.numel()
    return sizes


def settings_of(technique: Technique) -> dict[str, object]:
    """Return the settings by name."""
    return {name: getattr(technique, name) for name in technique.settings()}


def mixed_in(module: nn.Module) -> dict[str, dict[str, object]]:
    """Return the settings of each mixin of this package that ``module`` inherits."""
    ours = [kind for kind in type(module).__mro__ if kind.__module__.startswith("lightning_tricks.")]
    return {
        kind.__name__: {
            name: getattr(module, name, None)
            for name in vars(kind).get("__annotations__", {})
            if not name.startswith("_")
        }
        for kind in ours
        if not issubclass(kind, nn.Module)
    }


def changed(kind: type, settings: Mapping[str, object]) -> str:
    """Return those of ``settings`` that are not the defaults of ``kind``, as they are written.

    Example:
        >>> from lightning_tricks import GradientClip
        >>> changed(GradientClip, {"max_norm": 2.0, "max_value": None, "norm_type": 2.0, "params": "head"})
        "max_norm=2.0, params='head'"
    """
    fields = vars(kind).get("__dataclass_fields__", {})
    usual = {name: each.default for name, each in fields.items()}
    usual |= {
        name: each.default_factory()
        for name, each in fields.items()
        if each.default_factory is not dataclasses.MISSING
    }
    other = [name for name, value in settings.items() if written(usual.get(name)) != written(value)]
    return ", ".join(f"{name}={written(settings[name])}" for name in other)


def plain(value: object) -> object:
    """Return settings, by name, as loggers take them: what they cannot compare is written out."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else written(value)


def in_words(outcome: Mapping[str, float | int | str]) -> str:
    """Return what a technique did, in words."""
    done = {name: value for name, value in outcome.items() if value != ""}
    words = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in done.items()}
    return ", ".join(f"{name} {value}" for name, value in words.items())
