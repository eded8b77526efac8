"""The loss of single samples, and labels as a module itself would give them.

With labels drawn from a module's own predictions, squared gradients are those of the true Fisher information;
with the labels of the data, of the empirical one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tricks.core.functional import Loss

__all__ = ["loss_of_single_samples", "with_drawn_labels"]


@torch.no_grad()
def with_drawn_labels(module: nn.Module, batch: Any) -> list[Any]:
    """Return ``batch`` with class labels that are drawn from the predictions of ``module``.

    Args:
        module: Called on the inputs; returns logits, shape (n, classes, ...).
        batch: A pair of inputs and labels, shape (n, ...) and of whole numbers.

    Raises:
        ValueError: If the batch is no such pair, or the shapes do not fit.
    """
    pair = isinstance(batch, list | tuple) and len(batch) == 2
    labels = batch[1] if pair else None
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            "batches must be pairs of inputs and class labels for the labels to be drawn from predictions, "
            f"got {type(batch).__name__}: use fisher='empirical'"
        )
    logits = module(batch[0])
    if not isinstance(logits, Tensor) or logits.shape[:1] + logits.shape[2:] != labels.shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the module must return logits of shape (n, classes, ...) for labels of shape "
            f"{tuple(labels.shape)}, got {got}: use fisher='empirical'"
        )
    odds = logits.float().softmax(1).movedim(1, -1)
    drawn = torch.multinomial(odds.reshape(-1, odds.shape[-1]), 1)
    return [batch[0], drawn.view(labels.shape).to(labels.dtype)]


def loss_of_single_samples(loss: Loss) -> Loss:
    """Return ``loss`` for batches of one, of which BatchNorm can take no statistics.

    What it raises for a sample becomes a :exc:`ValueError` of the data that hold it.
    """

    def found(module: nn.Module, batch: Any) -> Tensor:
        try:
            return loss(module, batch)
        except Exception as error:  # training_step is a user's own, and may raise anything
            raise ValueError(
                "data must hold samples of which training_step takes each alone, with labels among the "
                f"classes that the module has now, got {type(error).__name__}: {error}"
            ) from error
        finally:
            _check_norms(module)

    return found


def _check_norms(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            raise ValueError(
                f"BatchNorm must use running statistics for gradients per sample, got {name!r} with "
                "those of the batch: leave its mode to Lightning, with track_running_stats=True"
            )
