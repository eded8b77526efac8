"""Gradient surgery: several losses, of which each has a gradient of its own until a step is made of them.

    g <- sum of w_i g_i    over the parameters that the losses share,    w = method(G),    G_ij = g_i . g_j

``g_i`` is the gradient of loss ``i``; what the methods are stands in
:mod:`lightning_tricks.gradients.surgery_methods`.

Reference: Yu et al., "Gradient Surgery for Multi-Task Learning", 2020, https://arxiv.org/abs/2001.06782.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.chosen import chosen_parameters
from lightning_tricks.core.seeds import seed_of
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.gradients.surgery_methods import PCGrad, Sum, SurgeryMethod
from lightning_tricks.lifecycle.closures import Closures, Pass, averaged, check_automatic
from lightning_tricks.lifecycle.technique import Technique

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["GradientSurgery", "combine", "gramian"]

Task = list[Tensor | None]
"""The gradient of one loss, by parameter; ``None`` where it does not reach one."""


@torch.no_grad()
def gramian(tasks: list[Task]) -> Tensor:
    """Return the products of the gradients of all losses, shape (losses, losses), in double precision.

    In single precision the square of a gradient of 1e-23 would be 0, and what is divided by it infinite.

    Args:
        tasks: At least one; all of equally many tensors, of which at least one is there.

    Example:
        >>> gramian([[torch.tensor([1.0, 2.0]), None], [torch.tensor([3.0, 0.0]), torch.ones(1)]])
        tensor([[ 5.,  3.],
                [ 3., 10.]], dtype=torch.float64)
    """
    total: Tensor | None = None
    for grads in zip(*tasks, strict=True):
        like = next((grad for grad in grads if grad is not None), None)
        if like is None:
            continue
        filled = [torch.zeros_like(like) if grad is None else grad for grad in grads]
        rows = torch.stack([_real(grad) for grad in filled])
        product = rows @ rows.T
        total = product if total is None else total + product.to(total)
    assert total is not None
    return total


def _real(grad: Tensor) -> Tensor:
    flat = (torch.view_as_real(grad) if grad.is_complex() else grad).flatten()
    return flat.float() if flat.device.type == "mps" else flat.double()  # which has no double


@torch.no_grad()
def combine(tasks: list[Task], weights: Tensor) -> Task:
    """Return the sum of the gradients of all losses, each times its weight.

    Args:
        tasks: At least one; all of equally many tensors. They may be changed.
        weights: Shape (losses,).

    Example:
        >>> combine([[torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 0.0])]], torch.tensor([1.0, 0.5]))
        [tensor([2.5000, 2.0000])]
    """
    found: Task = []
    for grads in zip(*tasks, strict=True):
        total: Tensor | None = None
        for grad, weight in zip(grads, weights, strict=True):
            if grad is not None:
                part = grad.mul_(weight.to(grad.device))
                total = part if total is None else total.add_(part)
        found.append(total)
    return found


@final
@dataclass(eq=False, repr=False, kw_only=True)
class GradientSurgery(Technique):
    """Make one gradient of those of several losses that pull against each other (:func:`combine`).

    ``PCGrad``, ``CAGrad`` or a method of torchjd says how.

    ``training_step`` returns the losses by name beside their sum::

        return {"loss": depth + 0.1 * normals, "losses": {"depth": depth, "normals": 0.1 * normals}}

    * **When** in place of the backward pass of automatic optimization, which runs once per loss; before all
      other work on gradients. Under accumulation each loss has its own sum over the batches of a step.
    * **Changes** the gradients of the parameters that ``params`` matches; all others get those of the sum.
      Over several processes, each loss's gradient is averaged before they are weighed; a parameter that no
      loss reaches then gets a gradient of 0. Hooks of the backward pass are called once per loss, on its
      gradient. Refused in manual optimization and over shards. What ``loss`` holds beside ``losses`` is not
      trained: in the first batch they must be equal. A loss without a gradient in a batch is left out of it.
    * **Logs** (but with ``Sum()``) ``gradient_surgery/conflicts``, the share of pairs of losses with
      gradients that point against one another, and ``/weight/NAME`` of each loss.
    * **Saves** how many times it drew; random orders follow from that and from ``seed``.
    * **Cost** a backward pass per loss (2.3, 2.6 and 4.5 times the step for 2, 3 and 5 losses on a CPU), and
      a gradient in memory per loss; no read to the host but by ``TorchJD``. ``Sum()`` costs nothing.
    * **Use** for several tasks on one trunk, where ``conflicts`` is not near 0; **not** before equal weights,
      tuned, were tried: they are often as good.

    Args:
        method: ``PCGrad()``, ``CAGrad(c=0.4)``, ``TorchJD("MGDA")``, or ``Sum()`` as a baseline.
        params: Name patterns of the parameters that the losses share, such as ``"encoder"``.
        seed: Seed of random orders, at least 0.

    Example:
        >>> GradientSurgery(params="encoder")
        GradientSurgery(method=PCGrad(), params='encoder', seed=0)
    """

    method: SurgeryMethod = field(default_factory=PCGrad)
    params: Patterns = "*"
    seed: int = 0
    _chosen: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _closures: Closures | None = field(default=None, init=False, repr=False)
    _shared: list[nn.Parameter] = field(default_factory=list, init=False, repr=False)
    _names: tuple[str, ...] = field(default=(), init=False, repr=False)
    _tasks: dict[str, dict[nn.Parameter, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _seen: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _drawn: int = field(default=0, init=False, repr=False)

    @property
    def gradient_stage(self) -> str:
        return "surgery"

    def __post_init__(self) -> None:
        if not isinstance(self.method, SurgeryMethod):
            raise TypeError(f"method must be a policy such as PCGrad(), got {self.method!r}")
        as_patterns("params", self.params)
        checks.whole("seed", self.seed)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_automatic(pl_module, self.state_key)
        if trainer.strategy.restore_checkpoint_after_setup:
            name = type(trainer.strategy).__name__
            raise ValueError(f"{self.state_key} needs whole gradients in each process: use DDP, got {name}")
        self._chosen = chosen_parameters(pl_module, self.params, trainer.optimizers)

    def claims(self) -> Iterable[Claim]:
        return [self.claim("passes", None)]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(self.method, Sum):
            self._closures = Closures(trainer, lambda each: self._run(trainer, pl_module, each))

    def undo(self) -> None:
        if self._closures is not None:
            self._closures.remove()
            self._closures = None
        self._names, self._tasks = (), {}

    def _run(self, trainer: Trainer, pl_module: LightningModule, each: Pass) -> Any:
        with each.several():
            result = each.forward()
            each.zero_grad()
            if each.begins:
                self._tasks, self._shared = {}, self._stepped(trainer)
            if result.closure_loss is not None:
                count = trainer.accumulate_grad_batches
                losses = {name: loss / count for name, loss in self._losses(result).items()}
                if not self._names:
                    self._names = tuple(losses)
                    self._check_sum(losses, result.closure_loss)
                self._backward(each, losses)
                # Without their graph, which callbacks would keep for as long as they keep the outputs.
                result.extra["losses"] = {name: loss.detach() * count for name, loss in losses.items()}
        if each.steps:
            self._operate(trainer, pl_module)
        return result

    def _stepped(self, trainer: Trainer) -> list[nn.Parameter]:
        # Of others nobody takes a gradient away: it would be there in the next step, and pass for the first
        # loss's. Anew in each step, because other code may add to the groups.
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        held = {parameter for group in groups for parameter in group["params"]}
        return [parameter for parameter in self._chosen.values() if parameter in held]

    def _losses(self, result: Any) -> dict[str, Tensor]:
        """Return the losses of a batch by name."""
        losses = result.extra.get("losses")
        if not isinstance(losses, Mapping) or not losses:
            raise ValueError(
                f"training_step must return its losses for {self.state_key}, such as "
                f'{{"loss": a + b, "losses": {{"a": a, "b": b}}}}, got losses={losses!r}'
            )
        for name, loss in losses.items():
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ValueError(f"losses must hold tensors of one number, got {name!r}: {loss!r}")
        if result.closure_loss.requires_grad and not any(loss.requires_grad for loss in losses.values()):
            raise ValueError(
                f"losses must have a gradient, as loss has, got {list(losses)} without: detach none"
            )
        named = {str(name): loss for name, loss in losses.items()}
        if self._names and set(self._names) != set(named):
            raise ValueError(f"losses must be the same in each batch, {self._names}, got {tuple(named)}")
        return {name: named[name] for name in self._names or named}

    def _check_sum(self, losses: dict[str, Tensor], loss: Tensor) -> None:
        """Refuse losses that are not all there is; once in a run, because it reads back to the host."""
        total, wanted = sum(each.item() for each in losses.values()), loss.item()
        size = sum(abs(each.item()) for each in losses.values())
        # In half precision three losses may well be off by a hundredth.
        share = 0.02 if any(each.dtype.itemsize < 4 for each in losses.values()) else 1e-4
        if abs(total - wanted) > share * size:
            raise ValueError(f"loss must be the sum of losses, {total}, got {wanted}")

    def _backward(self, each: Pass, losses: dict[str, Tensor]) -> None:
        """Propagate each loss by itself, and keep its gradients of the shared parameters apart."""
        left = sum(loss.requires_grad for loss in losses.values())
        for name, loss in losses.items():
            own = self._tasks.setdefault(name, {})
            if not loss.requires_grad:
                continue  # a task of which this batch holds nothing
            left -= 1
            each.backward(loss, retain_graph=left > 0)
            for parameter in self._shared:
                if parameter.grad is not None:
                    before = own.get(parameter)
                    own[parameter] = parameter.grad if before is None else before.add_(parameter.grad)
                    parameter.grad = None

    def _operate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the shared parameters the gradient of the step."""
        if not self._tasks:
            return
        named, self._tasks = self._tasks, {}
        shared = [p for p in self._shared if p.requires_grad]
        tasks: list[Task] = [[own.get(parameter) for parameter in shared] for own in named.values()]
        if trainer.world_size > 1:
            self._average(trainer, pl_module, shared, tasks)
        if not any(grad is not None for task in tasks for grad in task):
            return
        products = gramian(tasks)
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.label, self._drawn))
        self._drawn += 1
        weights = self.method.weights(products, generator)
        for parameter, grad in zip(shared, combine(tasks, weights), strict=True):
            parameter.grad = grad
        if self.reports(trainer):
            pairs = torch.triu_indices(len(tasks), len(tasks), 1, device=products.device)
            against = (products[*pairs] < 0).float().sum() / max(pairs.shape[1], 1)
            self._seen = {
                "conflicts": against,
                **{f"weight/{n}": w for n, w in zip(named, weights, strict=True)},
            }

    def _average(
        self, trainer: Trainer, pl_module: LightningModule, shared: list[nn.Parameter], tasks: list[Task]
    ) -> None:
        """Average the gradients of all processes: those of each loss, and all others'."""
        for task in tasks:
            own = [torch.zeros_like(p) if g is None else g for p, g in zip(shared, task, strict=True)]
            task[:] = averaged(trainer, own)
        among = set(shared)
        others = [p for p in pl_module.parameters() if p.requires_grad and p not in among]
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in others]
        for parameter, grad in zip(others, averaged(trainer, own), strict=True):
            parameter.grad = grad

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._seen:
            self.report(trainer, pl_module, optimizer, **self._seen)
            self._seen = {}

    def saved(self) -> dict[str, Any]:
        return {"drawn": self._drawn}

    def restore(self, state: dict[str, Any]) -> None:
        self._drawn = state["drawn"]
