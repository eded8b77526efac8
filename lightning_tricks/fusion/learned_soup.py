"""Learned soup: the mixture of models with the least loss on held-out data, found by its gradient.

    min_a  L(sum_i a_i theta_i),    sum_i a_i = 1,    dL/da_i = <grad L, theta_i>

with one coefficient for each model, or for each model and layer or tensor. There are few of them, so that
L-BFGS on the loss of all batches together finds them in some tens of passes, without a learning rate. In
place of task vectors with free factors (AdaMerging) the base is one more model, and coefficients are affine.
Running statistics of BatchNorm are mixed like weights.

Reference: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", 2022, https://arxiv.org/abs/2203.05482, "learned soup"; per layer also
Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", 2024,
https://arxiv.org/abs/2310.02575.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.functional import (
    check_loss,
    count_samples,
    differentiable_statistics,
    in_evaluation,
)
from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.findings import tell
from lightning_tricks.fusion.methods import Evaluate, check_finite
from lightning_tricks.fusion.mixture import Mixture, Per, Sign, coefficients, group_of
from lightning_tricks.fusion.numbers import mixes
from lightning_tricks.fusion.probe import Probe, Probing

__all__ = ["LearnedSoup", "learned_coefficients", "learned_soup"]


def learned_soup(
    models: Sequence[Model], probe: Probe, *, per: Per = "model", sign: Sign = "convex", steps: int = 20
) -> dict[str, Tensor]:
    """Return the mixture of ``models`` by :func:`learned_coefficients`.

    Raises:
        ValueError: As that.
    """
    return LearnedSoup(per=per, sign=sign, steps=steps).probed(models, probe).fuse(models)


def learned_coefficients(
    models: Sequence[Model], probe: Probe, *, per: Per = "model", sign: Sign = "convex", steps: int = 20
) -> dict[str, list[float]]:
    """Return coefficients of a mixture with little loss; never more than that of the plain average.

    Args:
        models: At least one; of equal names, shapes and types.
        probe: Gives the loss, the mean over all samples; best of data on which no model was trained.
        per: What has coefficients of its own: each ``"model"``; of it each ``"layer"``, which is the module
            that holds a tensor; or each ``"tensor"``.
        sign: ``"convex"`` for coefficients not below 0; ``"affine"`` for any, which can also go beyond the
            models, and needs more data.
        steps: Of L-BFGS at most, each of one or a few passes over all batches, forward and backward.

    Returns:
        One coefficient of each model, by layer or tensor; with ``per="model"`` by ``""``.

    Raises:
        ValueError: If the models do not fit one another or the probe, or the loss of the plain average is
            not a finite number.
    """
    found = LearnedSoup(per=per, sign=sign, steps=steps).probed(models, probe)
    return {group: list(values) for group, values in found.coefficients.items()}


@dataclass(frozen=True)
class _Landscape:
    """The loss over coefficients.

    Attributes:
        probe: Gives the loss.
        models: By names in its module.
        still: What is not mixed, likewise.
        groups: Of each name of a tensor that is mixed, its row of the coefficients.
    """

    probe: Probe
    models: list[dict[str, Tensor]]
    still: dict[str, Tensor]
    groups: Mapping[str, int]

    def loss_and_gradient(self, free: Tensor, sign: Sign) -> tuple[float, Tensor]:
        """Return the mean loss over all samples, and its gradient with respect to ``free``."""
        free = free.detach().requires_grad_()
        with torch.enable_grad():
            rows = coefficients(free, sign)
            mixed = {name: self._mixed(name, rows[row]) for name, row in self.groups.items()}
            loss, count, gradients = self._pass({name: value.detach() for name, value in mixed.items()})
            outer = torch.autograd.grad([*mixed.values()], free, gradients)[0]
        # Together, because processes that share the work then wait for one another once.
        total = self.probe.add_up(torch.cat([outer.new_tensor([loss, float(count)]), outer.flatten()]))
        if not total[1]:
            raise ValueError("batches of probe must hold at least one, got none")
        return float(total[0] / total[1]), (total[2:] / total[1]).view_as(free)

    def _mixed(self, name: str, shares: Tensor) -> Tensor:
        tensors = [model[name] for model in self.models]
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        parts = [t.to(wide) * share.to(t.device, wide) for t, share in zip(tensors, shares, strict=True)]
        return torch.stack(parts).sum(0).to(tensors[0].dtype)

    def _pass(self, mixed: dict[str, Tensor]) -> tuple[float, int, list[Tensor]]:
        """Return the summed loss of all samples, how many there are, and the gradient by tensor."""
        leaves = {name: value.requires_grad_() for name, value in mixed.items()}
        total, samples = 0.0, 0
        gradients = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for batch in self.probe.batches:
            # Copies, because some modules write into them, such as into counters.
            others = {name: value.clone() for name, value in self.still.items()}
            loss = check_loss(self.probe.loss_of({**others, **leaves}, batch))
            count = count_samples(batch)
            found = torch.autograd.grad(loss * count, [*leaves.values()], allow_unused=True)
            for gradient, part in zip(gradients, found, strict=True):
                if part is not None:
                    gradient += part
            total, samples = total + float(loss.detach()) * count, samples + count
        return total, samples, gradients


def _descended(landscape: _Landscape, shape: tuple[int, int], sign: Sign, steps: int) -> Tensor:
    """Return the free numbers, of ``shape``, with the least loss that L-BFGS from 0 sees."""
    free = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    best, least = free.detach().clone(), math.inf
    optimizer = torch.optim.LBFGS([free], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> float:
        nonlocal best, least
        loss, free.grad = landscape.loss_and_gradient(free, sign)
        if loss < least:
            best, least = free.detach().clone(), loss
        elif math.isinf(least):
            raise ValueError(f"the loss of the plain average must be a finite number, got {loss}")
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch gives it no types
    return best


@dataclass(frozen=True)
class LearnedSoup(Probing):
    """Fuse by the mixture with the least loss on held-out data (:func:`learned_soup`).

    Costs a few passes over all batches, forward and backward, for each of ``steps``; holds all models in
    memory. With few batches, coefficients per layer or tensor fit these and nothing else.

    Args:
        per: What has coefficients of its own: each ``"model"``, or of it each ``"layer"`` or ``"tensor"``.
        sign: ``"convex"`` for coefficients not below 0, ``"affine"`` for any; they always make 1.
        steps: Of L-BFGS at most.
        batches: Of how many batches of the validation data of a run; ``None`` for all.

    Example:
        >>> LearnedSoup(per="layer", batches=20)
        LearnedSoup(per='layer', sign='convex', steps=20, batches=20)
    """

    held_out = True

    per: Per = "model"
    sign: Sign = "convex"
    steps: int = 20
    batches: int | None = None

    def __post_init__(self) -> None:
        checks.one_of("per", self.per, ("model", "layer", "tensor"))
        checks.one_of("sign", self.sign, ("convex", "affine"))
        checks.whole("steps", self.steps, 1)
        if self.batches is not None:
            checks.whole("batches", self.batches, 1)

    @property
    def entrywise(self) -> bool:
        return False  # a loss takes whole tensors

    @property
    def needs_probe(self) -> bool:
        return True

    def probed(self, models: Sequence[Model], probe: Probe) -> Mixture:
        check_finite(models)
        places = probe.names(models[0])
        # Tied tensors have one name in the module, and so one group.
        groups = {
            name: group_of(clean_name(places[name]), self.per)
            for name in models[0]
            if mixes([model[name] for model in models])
        }
        if not groups:  # the models are one
            return Mixture({}, {})
        rows = {group: row for row, group in enumerate(dict.fromkeys(groups.values()))}
        mixed = {places[name]: rows[group] for name, group in groups.items()}
        placed = [probe.placed(model) for model in models]
        still = {name: value for name, value in placed[-1].items() if name not in mixed}
        landscape = _Landscape(probe, placed, still, mixed)
        with in_evaluation(probe.module), differentiable_statistics(probe.module):
            free = _descended(landscape, (len(rows), len(models)), self.sign, self.steps)
        found = coefficients(free, self.sign).tolist()
        if self.per == "model":
            tell(coefficients=found[0])
        return Mixture({group: found[row] for group, row in rows.items()}, groups)

    def fuse(self, models: Sequence[Model], evaluate: Evaluate | None = None) -> dict[str, Tensor]:
        raise ValueError("probe must be given for a learned soup, got None")
