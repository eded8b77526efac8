"""How healthy the gradients of a step are, layer by layer.

    gradient_to_weight  ||g|| / ||w||
    update_to_weight    ||w' - w|| / ||w||    with w' after the step
    zero                share of entries of g that are 0
    non_finite          share of entries of g that are infinite or no numbers

A layer is a module with the parameters that are its own; norms are Euclidean, over all of them. In these

    exploding   ||g|| is above a limit, or some of g is not finite
    vanishing   the root mean square of g is below a share of that of the layer where it is largest
    dead        all of g is 0, or there is none
    symmetric   all units have the same weights and the same gradients, and so can never become different

Reference: for the ratio of update and weight Karpathy, "makemore: Activations & Gradients, BatchNorm", 2022,
https://github.com/karpathy/nn-zero-to-hero (healthy about 1e-3); for vanishing and exploding gradients Glorot
and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010,
https://proceedings.mlr.press/v9/glorot10a.html; for the limit of 100 Chintala et al., "How to Train a GAN",
2016, https://github.com/soumith/ganhacks, item 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_tricks.core.gradients import Groups

__all__ = [
    "KINDS",
    "PER_LAYER",
    "LayerHealth",
    "Part",
    "ailments",
    "layer_sums",
    "layers_health",
    "overall",
    "update_squares",
]

KINDS = ("exploding", "vanishing", "dead", "symmetric")
PER_LAYER = ("gradient_norm", "gradient_to_weight", "update_to_weight", "zero", "non_finite")


class Part(NamedTuple):
    """What this process holds of a parameter.

    Attributes:
        layer: Number of its layer.
        weight: Its weight.
        gradient: Of the same shape; empty where this process holds none of it, ``None`` if there is none.
        groups: The process groups over which the parameter is spread.
        units: The axis of ``weight`` along which the units of the layer lie whole; ``None`` if none do, or if
            they are no units, as the rows of a table.
    """

    layer: int
    weight: Tensor
    gradient: Tensor | None
    groups: Groups
    units: int | None


class LayerHealth(NamedTuple):
    """The gradients of one layer in one step; norms, ratios, and shares in [0, 1]."""

    gradient_norm: float
    gradient_to_weight: float
    update_to_weight: float
    zero: float
    non_finite: float
    rms: float
    symmetric: bool


@torch.no_grad()
def layer_sums(parts: Sequence[Part], layers: int) -> Tensor:
    """Return what the health of each layer is computed from, the same in every process.

    Args:
        parts: At least one.
        layers: How many layers there are.

    Returns:
        For each layer, in float64 on the device of the first part, shape (layers, 7): the summed squares of
        gradients and of weights; of the gradients' entries the number, of those that are zero, and of those
        that are not finite; the number of pairs of rows that were compared, and of those that differ.
    """
    sums = _by_layer(_sums(parts, exact=False), parts, layers)
    # Squares may leave the range of float32, and what is not finite must be counted: both cost much more than
    # all else here, so it is done where it is called for.
    odd = ~sums[:, :2].isfinite().all(dim=1) | ((sums[:, 0] < 1e-30) & (sums[:, 3] < sums[:, 2]))
    if odd.any():
        ill = set(odd.nonzero().flatten().tolist())
        again = [part for part in parts if part.layer in ill]
        sums[odd] = _by_layer(_sums(again, exact=True), again, layers)[odd]
    return sums


@torch.no_grad()
def update_squares(parts: Sequence[Part], before: Sequence[Tensor], layers: int) -> Tensor:
    """Return the summed squares of what was added to the weights of each layer, shape (layers, 1).

    Args:
        parts: At least one, with weights as they are after the step.
        before: The weights before it; what they hold afterwards is of no use.
        layers: How many layers there are.
    """
    changes = [old.sub_(part.weight) for part, old in zip(parts, before, strict=True)]
    return _by_layer(_squares(changes, exact=False)[:, None], parts, layers)


def _by_layer(rows: Tensor, parts: Sequence[Part], layers: int) -> Tensor:
    """Return the sums of ``rows``, shape (parts, columns), for each layer, over all processes."""
    sums = rows.new_zeros(layers, rows.shape[1])
    by_groups: dict[Groups, list[int]] = {}
    for index, part in enumerate(parts):
        by_groups.setdefault(part.groups, []).append(index)
    for groups, own in by_groups.items():
        together = rows[own]
        for group in groups:
            dist.all_reduce(together, group=group)
        sums.index_add_(0, torch.tensor([parts[index].layer for index in own], device=rows.device), together)
    return sums


def _sums(parts: Sequence[Part], *, exact: bool) -> Tensor:
    """Return the columns of :func:`layer_sums` for each of ``parts``, shape (parts, 7)."""
    device = parts[0].weight.device
    # Where there is no gradient, one zero stands for as many as there are weights.
    gradients = [part.weight.new_zeros(1) if part.gradient is None else part.gradient for part in parts]
    known = [(part.weight if part.gradient is None else part.gradient).numel() for part in parts]
    entries = torch.tensor(known, dtype=torch.float64, device=device)
    filled = _stacked([torch.count_nonzero(each) for each in gradients])
    finite = (
        _stacked([torch.isfinite(each).sum() - each.numel() for each in gradients]) if exact else 0 * filled
    )
    differ = [_differ(part) for part in parts]
    pairs = torch.tensor([0.0 if each is None else 1.0 for each in differ], device=device)
    alike = _stacked([filled.new_zeros(()) if each is None else each for each in differ])
    squares = [_squares(each, exact=exact) for each in (gradients, [part.weight for part in parts])]
    return torch.stack([*squares, entries, entries - filled, -finite, pairs.double(), alike], dim=1)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """Return 0-d tensors as one in float64, on the device of the first; others may lie elsewhere."""
    device = values[0].device
    return torch.stack([each if each.device == device else each.to(device) for each in values]).double()


def _differ(part: Part) -> Tensor | None:
    """Return whether units of ``part`` differ, a 0-d tensor; ``None`` where there are none to compare."""
    weight, gradient = part.weight, part.gradient
    if part.units is None or weight.ndim < 2 or gradient is None or gradient.shape != weight.shape:
        return None
    if weight.shape[part.units] < 2:
        return None
    # Of identical units all are like the first; the second and the last tell nearly always.
    units = torch.tensor([0, 1, -1 % weight.shape[part.units]], device=weight.device)
    own, learned = (
        each.index_select(part.units, units).movedim(part.units, 0) for each in (weight, gradient)
    )
    first, others = learned[:1], learned[1:]
    # Sums of equal terms differ by rounding, when they are taken in another order.
    close = (first - others).abs().max() <= 1e-4 * first.abs().max()
    return ~((own[:1] == own[1:]).all() & close)


def _squares(tensors: Sequence[Tensor], *, exact: bool) -> Tensor:
    """Return the sum of squares of each, in float64; of those in float32 summed in that, unless ``exact``."""
    kinds = {each.dtype for each in tensors}
    if exact or kinds != {torch.float32} or len({each.device for each in tensors}) > 1:
        least = torch.float64 if exact else torch.float32
        norms = [
            torch.linalg.vector_norm(each, dtype=torch.promote_types(each.dtype, least)).double()
            for each in tensors
        ]
    else:
        norms = list(torch._foreach_norm(list(tensors)))
    return _stacked(norms).square()


def layers_health(sums: Tensor, updates: Tensor) -> list[LayerHealth]:
    """Return the health of each layer, from :func:`layer_sums` and :func:`update_squares`."""
    found = []
    values = torch.cat([sums, updates.to(sums)], dim=1).tolist()  # one read for all
    for gradient, weight, entries, zeros, not_finite, pairs, differ, update in values:
        norm, size, change = (math.sqrt(each) for each in (gradient, weight, update))
        found.append(
            LayerHealth(
                gradient_norm=norm,
                gradient_to_weight=norm / size if size else math.inf,
                update_to_weight=change / size if size else math.inf,
                zero=zeros / entries if entries else 0.0,
                non_finite=not_finite / entries if entries else 0.0,
                rms=norm / math.sqrt(entries) if entries else 0.0,
                symmetric=pairs > 0 and differ == 0,
            )
        )
    return found


def overall(health: Iterable[LayerHealth]) -> dict[str, float]:
    """Return what the layers have together: a norm, the median ratio of update and weight, largest shares."""
    layers = list(health)
    return {
        "gradient_norm": math.hypot(*(each.gradient_norm for each in layers)),
        "update_to_weight": median(each.update_to_weight for each in layers),
        "zero": max(each.zero for each in layers),
        "non_finite": max(each.non_finite for each in layers),
    }


def ailments(
    health: Mapping[str, LayerHealth], *, exploding: float, vanishing: float
) -> dict[str, list[str]]:
    """Return for each of :data:`KINDS` the names of the layers that are so.

    Args:
        health: By name.
        exploding: Largest norm of a layer's gradients that is in order, above 0.
        vanishing: Least root mean square of a layer's gradients that is in order, as a share of the largest.

    Example:
        >>> good = LayerHealth(1.0, 0.1, 1e-3, zero=0.0, non_finite=0.0, rms=0.1, symmetric=False)
        >>> layers = {"a": good, "b": good._replace(gradient_norm=900.0), "c": good._replace(rms=1e-9)}
        >>> ailments(layers, exploding=100.0, vanishing=1e-6)
        {'exploding': ['b'], 'vanishing': ['c'], 'dead': [], 'symmetric': []}
    """
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    largest = max((each.rms for each in health.values() if math.isfinite(each.rms)), default=0.0)
    for name, each in health.items():
        if each.non_finite or not each.gradient_norm <= exploding:
            found["exploding"].append(name)
        elif each.zero == 1.0:
            found["dead"].append(name)
        elif each.rms < vanishing * largest:
            found["vanishing"].append(name)
        if each.symmetric:
            found["symmetric"].append(name)
    return found
