"""The diagonal of a network's Fisher information: how sure the data make it of each weight.

    F_j = 1 / n sum over samples s of (d log p(y_s | x_s, theta) / d theta_j) ** 2

It is the mean over *samples* of squared gradients, never the square of a batch's mean gradient, which is
smaller by about the batch's size. With the labels of the data, as here, it is called empirical; a loss that
draws labels from the network's own predictions makes it the true one.

Reference: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017,
https://arxiv.org/abs/1612.00796; Kunstner et al., "Limitations of the empirical Fisher approximation for
natural gradient descent", 2019, https://arxiv.org/abs/1905.12558, for the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_tricks.core.functional import Loss, check_loss, in_evaluation, loss_with
from lightning_tricks.core.tensors import Model

__all__ = ["fisher_information", "squared_gradients"]

_MEMORY = 64 << 20  # Bytes of gradients that are held at a time, or those of one sample if they are more.

Gradients = Callable[[list[Tensor]], tuple[Tensor, ...]]
"""Takes the tensors of some samples; returns a gradient of each sample, by parameter."""


def fisher_information(module: nn.Module, batches: Iterable[Any], loss: Loss) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information of ``module``, in evaluation mode.

    Args:
        module: Its trainable parameters are meant; unchanged afterwards.
        batches: Tuples, lists or dicts of tensors, the first dimension of each of which counts samples.
        loss: Gets ``module`` and a batch of one sample; returns minus its log-likelihood, shape (), such as
            the cross-entropy.

    Returns:
        Of each trainable parameter, by name, a tensor of its shape, not below 0; in at least float32.

    Raises:
        TypeError: If ``loss`` returns something else.
        ValueError: If a batch is of another form, there is no sample, or the loss depends on no parameter.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> fisher_information(layer, [x], lambda module, x: module(x).sum())  # (1 + 9) / 2
        {'weight': tensor([[5.]])}
    """
    own = dict(module.named_parameters())
    sums, count = squared_gradients(module, {**own, **dict(module.named_buffers())}, batches, loss)
    if not count:
        raise ValueError("batches must hold at least one sample, got none")
    types = {name: torch.promote_types(own[name].dtype, torch.float32).to_real() for name in sums}
    return {name: (total / count).to(types[name]) for name, total in sums.items()}


def squared_gradients(
    module: nn.Module, tensors: Model, batches: Iterable[Any], loss: Loss
) -> tuple[dict[str, Tensor], int]:
    """Return the sums over samples of squared gradients, and how many samples there were.

    Args:
        module: Its trainable parameters are meant.
        tensors: Stand in for those of ``module``, which are all here, by their names.
        batches: As :func:`fisher_information`.
        loss: Likewise.

    Raises:
        TypeError: As :func:`fisher_information`.
        ValueError: Likewise, except if there is no sample.
    """
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    learning = [tensors[name].detach() for name in names]
    # Not tensors of the module, into which a forward pass might write.
    others = {name: value.detach().clone() for name, value in tensors.items() if name not in names}
    wide = [_wide(value) for value in learning]
    sums = [torch.zeros_like(value, dtype=dtype) for value, dtype in zip(learning, wide, strict=True)]
    size = sum(value.nbytes for value in learning)
    count = 0
    with in_evaluation(module), torch.enable_grad():
        for batch in batches:
            columns, rebuilt = _columns(batch)
            count += len(columns[0])

            def sample_loss(values: list[Tensor], sample: list[Tensor], rebuilt: Any = rebuilt) -> Tensor:
                one = rebuilt([column.unsqueeze(0) for column in sample])
                named = dict(zip(names, values, strict=True))
                return check_loss(loss_with(module, {**others, **named}, loss, one))

            at_once = max(1, _MEMORY // max(size, 1))
            for found in _gradients(sample_loss, learning, columns, at_once):
                for total, gradient in zip(sums, found, strict=True):
                    total += gradient.abs().to(total.dtype).square().sum(0)
    return dict(zip(names, sums, strict=True)), count


def _wide(value: Tensor) -> torch.dtype:
    # Squares of small gradients would be 0 in single precision. Metal has no other.
    return torch.float32 if value.device.type == "mps" else torch.float64


def _columns(batch: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """Return the tensors of ``batch``, one row per sample, and what makes a batch of others."""
    leaves, form = tree_flatten(batch)
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    shapes = [tuple(leaves[index].shape) for index in places]
    if not shapes or any(shape[:1] != shapes[0][:1] or not shape for shape in shapes):
        kind = f"{type(batch).__name__} of shapes {shapes}"
        raise ValueError(
            "a batch must be made of tensors, in tuples, lists or dicts, of which the first dimension counts "
            f"samples, got a {kind}"
        )

    def rebuilt(columns: list[Tensor]) -> Any:
        filled = dict(zip(places, columns, strict=True))
        return tree_unflatten([filled.get(index, leaf) for index, leaf in enumerate(leaves)], form)

    return [leaves[index] for index in places], rebuilt


def _gradients(
    sample_loss: Callable[[list[Tensor], list[Tensor]], Tensor],
    learning: list[Tensor],
    columns: list[Tensor],
    at_once: int,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the gradients of the samples, shape (samples, ...) by parameter, some samples at a time."""
    together = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0), randomness="different")
    vectorized = at_once > 1
    start = 0
    while start < len(columns[0]):
        part = [column[start : start + (at_once if vectorized else 1)] for column in columns]
        try:
            found = together(learning, part) if vectorized else _one(sample_loss, learning, part)
        except Exception:  # not all can be vectorized; what is wrong otherwise, the loop shows
            if not vectorized:
                raise
            vectorized = False
            continue
        yield tuple(found)
        start += len(part[0])


def _one(
    sample_loss: Callable[[list[Tensor], list[Tensor]], Tensor], learning: list[Tensor], part: list[Tensor]
) -> list[Tensor]:
    leaves = [value.clone().requires_grad_() for value in learning]
    loss = sample_loss(leaves, [column[0] for column in part])
    found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [gradient.unsqueeze(0) for gradient in found]
