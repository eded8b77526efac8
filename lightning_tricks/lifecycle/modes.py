"""Layers that run in evaluation mode while the rest of a network trains."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

__all__ = ["Modes"]


class Modes:
    """Which layers of a run techniques keep in evaluation mode.

    Each layer gets the mode that it had back when the last technique that keeps it lets it go.
    """

    def __init__(self) -> None:
        """Keep none."""
        self._kept: dict[str, set[nn.Module]] = {}
        self._own: dict[nn.Module, bool] = {}

    def keep(self, owner: str, layers: Iterable[nn.Module]) -> None:
        """Keep ``layers`` in evaluation mode from now on, instead of what ``owner`` kept before."""
        self.release(owner, training=True)
        self._kept[owner] = set(layers)
        for layer in self._kept[owner]:
            self._own.setdefault(layer, layer.training)
        self.hold()

    def hold(self) -> None:
        """Put the layers into evaluation mode, each alone: what it holds may train on."""
        for layer in self._own:
            if layer.training:
                layer.training = False

    def release(self, owner: str, *, training: bool) -> None:
        """Let go of what ``owner`` keeps: in the layers' own modes, or without ``training`` in evaluation."""
        layers = self._kept.pop(owner, set())
        for layer in layers.difference(*self._kept.values()):
            layer.training = self._own.pop(layer) and training
