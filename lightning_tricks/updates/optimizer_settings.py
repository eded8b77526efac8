"""What an optimizer is to be: which, with which options, and which of them differ between weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_tricks.core import checks
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.lifecycle.optimizer_names import check_options, default_of, optimizer_class

__all__ = ["OptimizerSettings"]

_LARGEST = 1e6  # one of 1e308 would overflow within an optimizer


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimizer and its parameter groups.

    Each parameter comes into exactly one group, frozen ones too, so that they can be unfrozen later.

    Args:
        optimizer: The name of an optimizer in ``torch.optim``, such as ``"SGD"``; one of ``schedulefree``,
            such as ``"AdamWScheduleFree"``; the import path of another; or a class.
        lr: The base rate, above 0; ``None`` for the optimizer's own.
        weight_decay: At least 0; ``None`` for the optimizer's own. Biases, normalisation and embeddings get
            none, told by type and shape.
        options: Further options of the optimizer, by name.
        params: Name patterns of the parameters that it steps, if others are left to further settings.
        layer_decay: Ratio of the rates of a layer and the one after it, in (0, 1]; 0.65 to 0.9 for
            fine-tuning.
        layers: Name patterns of the layers, from input to output; ``None`` for those that the module is built
            of.
        overrides: Options for the parameters that a name pattern matches, by pattern; the first that matches
            counts. A rate or a decay that stands here is final.

    Example:
        >>> OptimizerSettings("SGD", lr=0.1, options={"momentum": 0.9}).optimizer
        'SGD'
    """

    optimizer: str | type[Optimizer] = "AdamW"
    _: KW_ONLY
    lr: float | None = None
    weight_decay: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    params: Patterns = "*"
    layer_decay: float = 1.0
    layers: Sequence[Patterns] | None = None
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without a module.

        Raises:
            TypeError: If a setting is of a wrong type.
            ValueError: If a setting is out of its range, or the optimizer or one of its options is unknown.
        """
        kind = optimizer_class(self.optimizer)
        if vars(torch.optim).get(kind.__name__) is kind:
            object.__setattr__(self, "optimizer", kind.__name__)  # as it is written in a file
        self._check_numbers(kind)
        _check_by_name("options", kind, self.options)
        for name in ("lr", "weight_decay"):
            if name in self.options:
                raise ValueError(f"{name} must be given by itself, got it in options: {self.options!r}")
        as_patterns("params", self.params)
        self._check_layers()
        self._check_overrides(kind)

    def _check_numbers(self, kind: type[Optimizer]) -> None:
        if self.lr is None and default_of(kind, "lr") is None:
            raise ValueError(f"lr must be given for {kind.__name__}, which has none of its own, got None")
        if self.lr is not None:
            checks.in_range("lr", self.lr, 0.0, _LARGEST, open_low=True)
        if self.weight_decay is not None:
            checks.in_range("weight_decay", self.weight_decay, 0.0, _LARGEST)
            check_options("weight_decay", kind, ["weight_decay"])
        checks.in_range("layer_decay", self.layer_decay, 0.0, 1.0, open_low=True)

    def _check_layers(self) -> None:
        if self.layers is None:
            return
        if not (isinstance(self.layers, list | tuple) and self.layers):
            raise TypeError(f"layers must be a list of patterns, from input to output, got {self.layers!r}")
        for layer in self.layers:
            as_patterns("layers", layer)
        if self.layer_decay == 1.0:
            raise ValueError(f"layer_decay must be below 1 with layers={self.layers!r}, got 1.0")

    def _check_overrides(self, kind: type[Optimizer]) -> None:
        known = isinstance(self.overrides, Mapping)
        if not (known and all(isinstance(own, Mapping) for own in self.overrides.values())):
            raise TypeError(f"overrides must be options by name, by pattern, got {self.overrides!r}")
        for pattern, own in self.overrides.items():
            as_patterns("overrides", pattern)
            _check_by_name(f"overrides[{pattern!r}]", kind, own)
            for option in ("lr", "weight_decay"):
                if option in own:
                    checks.in_range(f"{option} of overrides[{pattern!r}]", own[option], 0.0, _LARGEST)


def _check_by_name(name: str, kind: type[Optimizer], options: object) -> None:
    if not isinstance(options, Mapping):
        raise TypeError(f"{name} must be options by name, got {options!r}")
    check_options(name, kind, options)


# Else a module that saves them as hyperparameters could not be resumed: they hold plain values only.
torch.serialization.add_safe_globals([OptimizerSettings])
