"""Batches of which each sample is mixed with another one, and its label with that one's.

What is mixed follows from a seed, the number of the batch and the process, so that a resumed run mixes as the
uninterrupted one does. Labels become probabilities; ``torch.nn.functional.cross_entropy`` takes them.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.conflicts import Claim
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.core.seeds import seed_of
from lightning_tricks.lifecycle.batch_edits import edit_batches
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.objectives.batch_entries import check_place, replaced_entries, taken_entry
from lightning_tricks.objectives.smoothed_losses import smooth_labels

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["MixedBatches", "mixed_labels"]


def mixed_labels(labels: Tensor, order: Tensor, *, share: float, classes: int) -> Tensor:
    """Return each label mixed with that of the sample that ``order`` puts in its place.

    Args:
        labels: Class indices, shape (n,), or probabilities, shape (n, classes).
        order: A permutation of the samples, shape (n,).
        share: That of each sample's own label, in [0, 1].
        classes: How many there are.

    Returns:
        Probabilities, shape (n, classes).

    Raises:
        ValueError: If labels are of another shape.

    Example:
        >>> mixed_labels(torch.tensor([0, 1]), torch.tensor([1, 0]), share=0.75, classes=2)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]])
    """
    if labels.ndim != (2 if labels.is_floating_point() else 1):
        raise ValueError(
            "labels must be one class for each sample, shape (n,), or floating probabilities, shape (n, "
            f"{classes}), got shape {tuple(labels.shape)}, {labels.dtype}"
        )
    soft = smooth_labels(labels, smoothing=0.0, classes=classes)
    return share * soft + (1 - share) * soft[order]


def refuses_probabilities(loss: nn.Module) -> str | None:
    """Return why ``loss`` takes no probabilities as labels; ``None`` if it may, or is no loss."""
    if isinstance(loss, nn.NLLLoss | nn.MultiMarginLoss):
        return f"{type(loss).__name__} takes class indices only; use nn.CrossEntropyLoss on logits"
    if isinstance(loss, nn.CrossEntropyLoss) and loss.ignore_index >= 0:
        return f"torch ignores no class there, as ignore_index={loss.ignore_index} asks for"
    return None


@dataclass(eq=False, repr=False, kw_only=True)
class MixedBatches(Technique):
    """Base of techniques that mix the samples of a batch; not to be used itself.

    Args:
        classes: How many the labels have, at least 2.
        alpha: Both parameters of the beta distribution of a sample's own share, in (0, 1e6].
        probability: With which a batch is mixed at all, in [0, 1]; a number, a schedule or its text.
        inputs: Place or key of the inputs in a batch.
        labels: Place or key of the labels.
        seed: Of the draws, at least 0.
    """

    classes: int
    alpha: float
    probability: float | str | Schedule = 1.0
    inputs: int | str = 0
    labels: int | str = 1
    seed: int = 0
    _course: Course | None = field(default=None, init=False, repr=False)
    _seen: int = field(default=0, init=False, repr=False)
    _tried: bool = field(default=False, init=False, repr=False)
    _end: Callable[[], None] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.whole("classes", self.classes, 2)
        self.alpha = checks.in_range("alpha", self.alpha, 0.0, 1e6, open_low=True)
        as_schedule("probability", self.probability, 0.0, 1.0)
        checks.whole("seed", self.seed)
        check_place("inputs", self.inputs)
        check_place("labels", self.labels)

    @abstractmethod
    def mix(self, inputs: Tensor, order: Tensor, share: float, draws: random.Random) -> tuple[Tensor, float]:
        """Return ``inputs`` mixed in the ``order``, and the share that is each sample's own in the end."""

    @final
    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, loss in pl_module.named_modules():
            if why := refuses_probabilities(loss):
                raise ValueError(f"losses must take probabilities as labels, got {name!r}: {why}")

    @final
    def claims(self) -> Iterator[Claim]:
        yield self.claim("batch", None)

    @final
    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._course = self.lay(trainer, "probability", as_schedule("probability", self.probability))
        self._tried = False
        self._end = edit_batches(trainer, "mixing", partial(self._mixed, trainer))

    def _mixed(self, trainer: Trainer, batch: Any) -> Any:
        assert self._course is not None
        draws = random.Random(seed_of(self.seed, self.label, self._seen, trainer.global_rank))
        wanted = draws.random() < self._course(self.clock.position)
        if not wanted and self._tried:
            return batch
        inputs = taken_entry(batch, self.inputs, name="inputs")
        labels = taken_entry(batch, self.labels, name="labels")
        if len(inputs) != len(labels):
            raise ValueError(f"labels must be one for each of {len(inputs)} inputs, got {len(labels)}")
        generator = torch.Generator().manual_seed(draws.getrandbits(48))
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        mixed, share = self.mix(inputs, order, draws.betavariate(self.alpha, self.alpha), draws)
        soft = mixed_labels(labels, order, share=share, classes=self.classes)
        soft = soft.to(inputs.dtype) if inputs.is_floating_point() else soft
        self._tried = True  # the first batch in any case, so that one that cannot be mixed shows at once
        return replaced_entries(batch, {self.inputs: mixed, self.labels: soft}) if wanted else batch

    @final
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert self._course is not None
        self._seen += 1
        self.report(trainer, pl_module, probability=self._course(self.clock.position))

    @final
    def saved(self) -> dict[str, Any]:
        return {"seen": self._seen}

    @final
    def restore(self, state: dict[str, Any]) -> None:
        self._seen = state["seen"]

    @final
    def undo(self) -> None:
        if self._end is not None:
            self._end()
        self._end = None
