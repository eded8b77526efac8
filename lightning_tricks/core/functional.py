"""The loss of a module as a function of its tensors, none of which is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from lightning_tricks.core.tensors import Model

__all__ = ["Loss", "check_loss", "count_samples", "differentiable_statistics", "in_evaluation", "loss_with"]

Loss = Callable[[nn.Module, Any], Tensor]
"""Calls a module on a batch and returns the loss, shape ()."""


class _Call(nn.Module):
    """Lets a function of a module be called with other tensors, as functions of torch want modules alone."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.module, batch)


def loss_with(module: nn.Module, tensors: Model, loss: Loss, batch: Any) -> Tensor:
    """Return the loss of ``batch`` with ``tensors`` in the place of the module's own of their names.

    Args:
        module: As it is called by ``loss``; unchanged afterwards.
        tensors: Parameters and buffers; of tied ones one name. A forward pass may write into buffers.
        loss: Gets ``module`` and ``batch``.
        batch: Of any form.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> tensors = {"weight": torch.tensor([[3.0]]), "bias": torch.zeros(1)}
        >>> loss_with(layer, tensors, lambda module, x: module(x).sum(), torch.tensor([[2.0]]))
        tensor(6.)
    """
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    found: Tensor = functional_call(_Call(module, loss), named, (batch,))
    return found


def check_loss(found: Any) -> Tensor:
    """Return what a :data:`Loss` returned, if a gradient can be taken of it.

    Raises:
        TypeError: If it is no tensor of one number.
        ValueError: If it depends on nothing.
    """
    if not isinstance(found, Tensor) or found.numel() != 1:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"{found!r:.80}"
        raise TypeError(f"loss must return a tensor of shape (), got {got}")
    if not found.requires_grad:
        raise ValueError(
            "loss must depend on the module's parameters, got one without gradient, as after detach(), "
            "torch.no_grad() or where all are frozen"
        )
    return found


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Put all of ``module`` into evaluation mode within this."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def differentiable_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm in evaluation mode give gradients to its running statistics, as torch's does not."""
    own = (_BatchNorm.forward, nn.SyncBatchNorm.forward)  # not those of subclasses that do otherwise
    layers = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    layers = [layer for layer in layers if type(layer).forward in own and "forward" not in vars(layer)]
    for layer in layers:
        vars(layer)["forward"] = partial(_normalized, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _normalized(layer: _BatchNorm, x: Tensor) -> Tensor:
    """Return what BatchNorm does in evaluation mode, shape (samples, channels, ...)."""
    if layer.running_mean is None or layer.running_var is None or layer.training:
        found: Tensor = type(layer).forward(layer, x)
        return found
    shape = (1, -1) + (1,) * (x.ndim - 2)
    out = (x - layer.running_mean.view(shape)) * (layer.running_var + layer.eps).rsqrt().view(shape)
    if layer.weight is not None:
        out = out * layer.weight.view(shape)
    if layer.bias is not None:
        out = out + layer.bias.view(shape)
    return out.to(x.dtype)


def count_samples(batch: Any) -> int:
    """Return the first dimension of the first tensor in ``batch``; 1 if there is none.

    Example:
        >>> import torch
        >>> count_samples({"image": torch.zeros(8, 3, 32, 32), "label": torch.zeros(8)})
        8
    """
    sizes = (len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)
    return next(sizes, 1)
