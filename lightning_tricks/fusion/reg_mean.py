"""RegMean: linear layers whose outputs are nearest, by least squares, to those of all models on their inputs.

    W = (sum_i W_i G_i) (sum_i G_i) ^ -1,    G_i = X_i' X_i / n_i,    off the diagonal times ``scale``

``W_i`` is the weight of model i, shape (out, in), and ``X_i`` the inputs of its layer, shape (n_i, in). At
scale 1 this minimises ``sum_i |X_i (W - W_i)'| ** 2 / n_i``; the paper finds 0.9 better. All other tensors,
biases included, are averaged, and so are weights in directions in which no model has inputs.

Reference: Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", 2023,
https://arxiv.org/abs/2212.09849, equation 3 and section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.functional import in_evaluation
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.by_names import ByNames
from lightning_tricks.fusion.known import Known, checked_paths, opened
from lightning_tricks.fusion.methods import TensorwiseMethod, floating
from lightning_tricks.fusion.pieces import combination
from lightning_tricks.fusion.probe import Probe, Probing

__all__ = ["RegMean", "WithGrams", "gram_matrices", "reg_mean"]

Sums = dict[str, tuple[Tensor, int]]
"""Of each weight, the sum over inputs of their outer products, and how many inputs there were."""


def gram_matrices(
    module: nn.Module, batches: Iterable[Any], call: Callable[[nn.Module, Any], object]
) -> dict[str, Tensor]:
    """Return the mean outer products of the inputs of all linear layers, in evaluation mode.

    Args:
        module: Unchanged afterwards. A weight that something else uses too, such as an embedding, is left
            out, and so is one whose layer is never called by itself, such as the projections of attention.
        batches: As ``call`` takes them.
        call: Gets ``module`` and a batch, and calls the one on the other.

    Returns:
        By the name of each weight, shape (in, in), in double precision.

    Raises:
        ValueError: If no input reaches a linear layer.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> gram_matrices(nn.Linear(2, 3), [x], lambda module, x: module(x))
        {'weight': tensor([[5., 1.],
                [1., 2.]], dtype=torch.float64)}
    """
    with torch.no_grad(), in_evaluation(module), _watched(module) as sums:
        for batch in batches:
            call(module, batch)
    return _means(sums)


def _means(sums: Sums) -> dict[str, Tensor]:
    found = {name: total / count for name, (total, count) in sums.items() if count}
    if not found:
        raise ValueError("batches must reach a linear layer, but none got an input")
    return found


def _linear_layers(module: nn.Module) -> dict[nn.Linear, str]:
    """Return the layers with the name of their weight, tied ones with one; if linear layers alone use it."""
    users: dict[int, list[nn.Module]] = {}
    for part in module.modules():
        for value in part.parameters(recurse=False):
            users.setdefault(id(value), []).append(part)
    return {
        layer: name
        for name, value in module.named_parameters()
        for layer in users[id(value)]
        if isinstance(layer, nn.Linear) and value is layer.weight and value.is_floating_point()
        if all(isinstance(user, nn.Linear) for user in users[id(value)])
    }


@contextmanager
def _watched(module: nn.Module) -> Iterator[Sums]:
    """Give the sums of all inputs that linear layers get within this."""
    layers = _linear_layers(module)
    sums: Sums = {}
    for layer, name in layers.items():
        # Products of single precision would be lost where inputs are much alike. Metal has no other.
        dtype = torch.float32 if layer.weight.device.type == "mps" else torch.float64
        size = layer.in_features
        sums[name] = torch.zeros(size, size, dtype=dtype, device=layer.weight.device), 0

    def watch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(layer, nn.Linear)
        inputs = args[0] if args else kwargs["input"]
        total, count = sums[layers[layer]]
        rows = inputs.detach().reshape(-1, layer.in_features).to(total.dtype)
        sums[layers[layer]] = total.addmm_(rows.T, rows), count + len(rows)

    hooks = [layer.register_forward_pre_hook(watch, with_kwargs=True) for layer in layers]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def reg_mean(models: Sequence[Model], grams: Sequence[Model], *, scale: float = 0.9) -> dict[str, Tensor]:
    """Return the model whose linear layers do most nearly what those of all ``models`` do.

    Args:
        models: At least one; of equal names, shapes and types.
        grams: For each model what :func:`gram_matrices` returns for it. All other tensors are averaged.
        scale: What entries off the diagonal are multiplied by, in [0, 1].

    Raises:
        ValueError: If the models and matrices do not fit one another; names the tensor.

    Example:
        >>> models = [{"w": torch.tensor([[0.0, 0.0]])}, {"w": torch.tensor([[4.0, 4.0]])}]
        >>> reg_mean(models, [{"w": torch.diag(torch.tensor([1.0, 3.0]))}, {"w": torch.eye(2)}])
        {'w': tensor([[2., 1.]])}
    """
    if len(grams) != len(models):
        raise ValueError(f"grams must be one for each of {len(models)} models, got {len(grams)}")
    checks.in_range("scale", scale, 0.0, 1.0)
    labels = [f"grams[{index}]" for index in range(len(grams))]
    return WithGrams(labels, [*grams], scale).checked(floating(models[0])).fuse(models)


@dataclass(frozen=True)
class WithGrams(Known):
    """Fuses by Gram matrices that are at hand.

    Args:
        labels: What to call them, for each model.
        known: They, for each model.
        scale: Of entries off the diagonal.
    """

    scale: float

    @torch.no_grad()
    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        found = [self.of(place, name) for place in range(len(tensors))]
        grams = [self._scaled(place, name, gram) for place, gram in enumerate(found) if gram is not None]
        if not grams:
            return combination(tensors, [1.0] * len(tensors), divisor=len(tensors))
        for place, gram in enumerate(grams):
            wanted = (*tensors[0].shape[1:],) * 2
            if tensors[0].ndim != 2 or gram.shape != wanted or not bool(gram.isfinite().all()):
                raise ValueError(
                    f"{name} of {self.labels[place]} must be of shape {wanted} and finite, got shape "
                    f"{tuple(gram.shape)} for a weight of shape {tuple(tensors[0].shape)}"
                )
        wide = [tensor.to(torch.float64) for tensor in tensors]
        mean = torch.stack(wide).mean(0)
        total = torch.stack([(weight - mean) @ gram for weight, gram in zip(wide, grams, strict=True)]).sum(0)
        # A step from the mean, so that it stays where there are no inputs and the sum is singular.
        return (mean + _divided(total, torch.stack(grams).sum(0), self.scale)).to(tensors[0].dtype)

    def _scaled(self, place: int, name: str, gram: Tensor) -> Tensor:
        gram = gram.to("cpu", torch.float64, copy=True)
        if gram.ndim == 2:
            diagonal = gram.diagonal().clone()
            gram.mul_(self.scale).diagonal().copy_(diagonal)
        return gram


def _divided(total: Tensor, gram: Tensor, scale: float) -> Tensor:
    """Return the X with ``X gram = total``, and 0 where ``gram``, scaled off its diagonal, is singular."""
    if scale < 1:
        # Over its diagonal it is then well-conditioned, and a tenth of the work does.
        found = torch.zeros_like(total)
        seen = gram.diagonal() > 0
        size = gram.diagonal()[seen].sqrt()
        factor = torch.linalg.cholesky(gram[seen][:, seen] / size / size[:, None])
        found[:, seen] = torch.cholesky_solve((total[:, seen] / size).T, factor).T / size
        return found
    values, vectors = torch.linalg.eigh(gram)
    seen = values > len(gram) * torch.finfo(gram.dtype).eps * values[-1]
    quotient: Tensor = (total @ vectors[:, seen] / values[seen]) @ vectors[:, seen].T
    return quotient


@dataclass(frozen=True)
class RegMean(ByNames, Probing):
    """Fuse linear layers by least squares on their inputs, and average the rest (:func:`reg_mean`).

    Without files it costs a forward pass over the batches for each model, and holds all models in memory,
    with a matrix of (in, in) in double precision for each layer of each. Convolutions are averaged.

    Args:
        scale: What entries of Gram matrices off the diagonal are multiplied by, in [0, 1]. Small models and
            few samples want less.
        grams: For each model a file of what :func:`gram_matrices` returns, by ``torch.save``; ``None`` to
            compute them from a probe.
        batches: Of how many batches of the training data of a run, without files; ``None`` for an epoch.

    Example:
        >>> RegMean(grams=("a.grams.pt", "b.grams.pt")).count
        2
    """

    scale: float = 0.9
    grams: tuple[str, ...] | None = None
    batches: int | None = None

    def __post_init__(self) -> None:
        checks.in_range("scale", self.scale, 0.0, 1.0)
        if self.grams is not None:
            object.__setattr__(self, "grams", checked_paths("grams", self.grams))
        if self.batches is not None:
            checks.whole("batches", self.batches, 1)

    @property
    def count(self) -> int | None:
        return None if self.grams is None else len(self.grams)

    @property
    def entrywise(self) -> bool:
        return False

    @property
    def needs_probe(self) -> bool:
        return self.grams is None

    def probed(self, models: Sequence[Model], probe: Probe) -> TensorwiseMethod:
        grams = [_grams_of(model, probe) for model in models]
        return WithGrams([f"the inputs of model {index}" for index in range(len(models))], grams, self.scale)

    def resolved(self, names: Sequence[str]) -> TensorwiseMethod:
        if self.grams is None:
            raise ValueError(f"probe or grams must be given for {self!r}, got neither")
        found = [opened("grams", path) for path in self.grams]
        return WithGrams([*self.grams], found, self.scale).checked(names)


def _grams_of(model: Model, probe: Probe) -> Model:
    tensors = probe.placed(model)
    with torch.no_grad(), in_evaluation(probe.module), _watched(probe.module) as sums:
        for batch in probe.batches:
            probe.loss_of(tensors, batch)
    for name, (total, count) in sums.items():
        sums[name] = probe.add_up(total), int(probe.add_up(torch.tensor(float(count))))
    grams = _means(sums)
    return {name: grams[place] for name, place in probe.names(model).items() if place in grams}
