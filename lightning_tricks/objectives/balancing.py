"""The weights of several losses over a run: decided at each optimizer step, from the steps before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tricks.core.checks import listed
from lightning_tricks.core.schedule import Course
from lightning_tricks.objectives.grad_norm import norms_of
from lightning_tricks.objectives.loss_balance import LossBalance, Moment, State

__all__ = ["Balancing", "read_freely", "stacked"]


def read_freely(tensor: Tensor) -> bool:
    """Return whether nothing waits for a device when ``tensor`` is read."""
    return tensor.is_cpu


def stacked(losses: Mapping[str, Tensor]) -> tuple[tuple[str, ...], Tensor]:
    """Return names in alphabetical order, and the losses, shape (losses,), at least float32.

    Raises:
        TypeError: If ``losses`` are not tensors by name.
        ValueError: If there is none, or one is not a single real number.

    Example:
        >>> stacked({"class": torch.tensor(2.0), "box": torch.tensor([1.0])})
        (('box', 'class'), tensor([1., 2.]))
    """
    if not isinstance(losses, Mapping) or not all(isinstance(name, str) for name in losses):
        raise TypeError(f"losses must be tensors by name, got {losses!r:.80}")
    if not losses:
        raise ValueError("losses must hold at least one, got none")
    for name, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            got = f"shape {tuple(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else repr(loss)
            raise ValueError(f"losses must be tensors of one real number, got {name!r}: {got}")
    names = tuple(sorted(losses))
    wide, device = torch.float32, losses[names[0]].device
    for loss in losses.values():
        wide = torch.promote_types(wide, loss.dtype)
    return names, torch.stack([losses[name].reshape(()).to(device, wide) for name in names])


@dataclass(eq=False)
class Balancing:
    """What is remembered of a run.

    Attributes:
        names: The losses, in alphabetical order.
        steps: Optimizer steps that were made.
        stamp: Tells the step that is open from others; ``None`` if each batch is one.
        epoch: Of the step that is open.
        state: What the strategy remembers of the steps that were made; ``None`` before the first batch.
        weights: Of the step that is open, shape (losses,).
        losses: Their sums over the batches of the open step, shape (losses,).
        norms: Of the means of their gradients over these batches.
        batches: How many.
        wrong: Which losses were no numbers that they may be, shape (losses,).
        courses: The strategy's schedules over the run, once it has begun.
        shared: The parameters whose gradients it looks at, once it has begun.
        gradients: Those behind ``norms``, summed.
    """

    names: tuple[str, ...]
    steps: int = 0
    stamp: int | None = None
    epoch: int = 0
    state: State | None = None
    weights: Tensor | None = None
    losses: Tensor | None = None
    norms: Tensor | None = None
    batches: int = 0
    wrong: Tensor | None = None
    courses: dict[str, Course] | None = None
    shared: list[nn.Parameter] | None = None
    gradients: list[Tensor] = field(default_factory=list)
    _batch: int | None = None

    def check_names(self, names: tuple[str, ...]) -> None:
        """Refuse losses of other names.

        Raises:
            ValueError: If these are others.
        """
        if names != self.names:
            raise ValueError(
                f"losses must be the same in each batch, {listed(self.names)}, got {listed(names)}"
            )

    def open(self, strategy: LossBalance, *, stamp: int | None, epoch: int) -> None:
        """Close the step that was open, if that was made, and open another."""
        if self.batches and (stamp is None or stamp != self.stamp):
            assert self.state is not None and self.losses is not None
            self.steps += 1
            self.state = strategy.advance(
                self.state,
                self.losses / self.batches,
                self.norms,
                count=self.steps,
                ends_epoch=epoch != self.epoch,
            )
            self.weights = self.losses = self.norms = self._batch = None
            self.batches, self.gradients = 0, []
        self.stamp, self.epoch = stamp, epoch

    def is_new(self, batch: int | None) -> bool:
        """Return whether ``batch`` is new in this step; another pass over one counts for nothing."""
        return batch is None or batch != self._batch

    def see(self, strategy: LossBalance, losses: Tensor, norms: Tensor | None, *, batch: int | None) -> None:
        """Take the losses of a batch.

        Args:
            strategy: What decides.
            losses: Shape (losses,), the same in all processes.
            norms: Of the means of their gradients over the batches of this step, this one included.
            batch: Its number.
        """
        self._batch = batch
        if self.state is None:
            self.state = strategy.begin(losses, norms)
        self.losses = losses if self.losses is None else self.losses + losses
        self.norms = norms
        self.batches += 1

    def norms_with(self, gradients: list[Tensor]) -> Tensor:
        """Return the norms of the means of the gradients over the batches of this step, with one batch more.

        Args:
            gradients: Of each loss in turn, for each parameter; the same in all processes.

        Raises:
            ValueError: If a loss has none in the first batch; names it.
        """
        before = self.gradients or [torch.zeros_like(each) for each in gradients]
        self.gradients = [each + own for each, own in zip(before, gradients, strict=True)]
        norms = norms_of(self.gradients, len(self.names)) / (self.batches + 1)
        if self.state is None and not norms.all():
            idle = [name for name, norm in zip(self.names, norms.tolist(), strict=True) if norm == 0.0]
            raise ValueError(f"losses must depend on params, got gradients of 0 for {listed(idle)}")
        return norms

    def moment(self, learned: Tensor | None) -> Moment:
        """Return what the weights of the open step are made of."""
        assert self.state is not None
        return Moment(self.names, self.steps, self.state, self.courses or {}, learned)

    def check_values(self, strategy: LossBalance, losses: Tensor, *, read: bool) -> None:
        """Refuse losses that are no numbers, or negative where that means nothing.

        Args:
            strategy: What they are for.
            losses: Shape (losses,).
            read: Whether to wait for a device now; else what is wrong is found when somebody does.

        Raises:
            ValueError: If one is; names it.
        """
        low = 0.0 if strategy.nonnegative else -torch.inf
        wrong = ~(losses.isfinite() & (losses >= low))
        self.wrong = wrong if self.wrong is None else self.wrong | wrong
        if not (read or read_freely(losses)):
            return
        for name, loss, bad in zip(self.names, losses.tolist(), self.wrong.tolist(), strict=True):
            if bad:
                self.wrong = None
                rule = f"finite and at least 0 for {type(strategy).__name__}" if low == 0.0 else "finite"
                fine = low <= loss < torch.inf and loss != -torch.inf
                when = " after one of an earlier batch that was not" if fine else ""
                raise ValueError(f"losses must be {rule}, got {name!r}: {loss}{when}")

    def numbers(self, losses: Tensor) -> dict[str, Tensor]:
        """Return the open step's weights and ``losses``, shape (losses,), by what they are called in logs."""
        assert self.weights is not None
        return {
            f"{what}/{name}": value
            for what, values in (("loss", losses), ("weight", self.weights))
            for name, value in zip(self.names, values, strict=True)
        }

    def to(self, device: torch.device) -> None:
        """Bring what it holds, as from a checkpoint, to ``device``."""
        self.state = None if self.state is None else {k: v.to(device) for k, v in self.state.items()}
        for name in ("weights", "losses", "norms", "wrong"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.to(device))

    def saved(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        kept = ("steps", "stamp", "epoch", "state", "weights", "losses", "norms", "batches")
        return {"names": list(self.names), **{name: getattr(self, name) for name in kept}}

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Balancing:
        """Return what :meth:`saved` returned as plain values."""
        return cls(**{**saved, "names": tuple(saved["names"])})
