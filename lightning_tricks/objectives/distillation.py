"""Distillation: a student learns from labels and from what teachers make of the same inputs.

    (1 - alpha) H(y, z_s) + alpha T ** 2 KL(softmax(z_t / T) || softmax(z_s / T))

with the cross entropy H of labels y and the student's logits z_s, and with the teacher's logits z_t, at the
temperature T; several teachers and hidden features may join
(:mod:`~lightning_tricks.objectives.distillation_loss`).

Reference: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
https://arxiv.org/abs/1503.02531, section 2.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_tricks.lifecycle.mixin_hooks import check_first
from lightning_tricks.lifecycle.notice import callbacks_of
from lightning_tricks.objectives.batch_entries import taken_entry
from lightning_tricks.objectives.distillation_loss import (
    agreement,
    as_logits,
    check_labels,
    distillation_loss,
)
from lightning_tricks.objectives.hidden_features import (
    PROJECTIONS,
    HiddenFeatures,
    matched_loss,
    projection_for,
)
from lightning_tricks.objectives.lessons import _Lessons, first_value
from lightning_tricks.objectives.teachers import Teachers, in_its_precision

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule

__all__ = ["Distillation"]


class Distillation:
    """Let a module learn from one teacher or several, too; inherit it before LightningModule.

    It learns softened predictions and, if asked, hidden features through projections: ``training_step``
    returns ``self.distill(logits, batch)``. Teachers stay out of checkpoints, optimizers and wrappers; their
    logits may be computed once.

    * **When** ``training_step`` calls :meth:`distill`; checked before the first batch. In validation it may
      be called, too: hidden features then do not count.
    * **Changes** nothing but what :meth:`distill` returns, the loss to minimise. Teachers are asked in
      evaluation mode and without gradients, on the student's device, in their own precision. They are no part
      of the module: not of its parameters, its mode, its checkpoints and hyperparameters, or of what DDP and
      FSDP wrap.
    * **Logs** ``distillation/hard``, the loss on the labels, ``/soft``, T ** 2 times the divergence from the
      teachers' predictions, both in nats, and ``/agreement``, the share of samples that both put into one
      class; with hidden features ``/features``, their mean squared difference.
    * **Saves** how schedules lie; projections of hidden features are weights of the module.
    * **Cost** a forward pass of each teacher in each step; each process holds all of each teacher. With
      ``cached=True`` one pass over the dataset instead, at each start of a run, and a number per sample and
      class on the device. On a GPU labels are looked at in the first batch and on steps that Lightning logs;
      elsewhere the device itself stops at those that are no class.
    * **Use** it for a small network, with larger ones that know better than the labels, or have many wrong or
      few of them; **not** with a teacher that learnt smoothed labels, which hides what it knows of the other
      classes.

    On digits of whose labels 30 % are drawn anew, a teacher that learnt true ones brings a small network from
    90 % to 95 %; one that learnt the same noise to 91 %, and to 92 % with ``alpha=0.9, temperature=1.0``: a
    high temperature teaches all that it says of wrong classes (``python -m benchmarks.distilling``).

    Other batches than tuples of inputs and labels: override :meth:`distillation_inputs` and
    :meth:`distillation_labels`; a network that returns no logits: :meth:`teacher_logits`.

    Cached logits are found by a sample's index: the dataset must give it as the batch's third entry, and the
    same inputs whenever it is asked. They are refused without an index, and where the first batch shows other
    inputs, as after random augmentation or mixing. The order of samples does not matter.

    Hidden features whose widths differ go through linear projections, which are trained:
    :meth:`build_projections`. A schedule of temperature, alpha or feature weight has its first value in
    evaluations outside of ``fit``.

    Attributes:
        teachers: Whom it learns from, and how; set in ``__init__`` or in the class.

    Example:
        ``DigitsClassifier`` trains any network on handwritten digits by cross entropy and SGD; with ``QUIET``
        the Trainer shows no bars and writes no files. A wide network learns 1,000 digits, and a small one
        the same images with 30 % of the labels drawn anew:

        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from torch import nn
        >>> from lightning_tricks import Distillation, Teachers
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> class Student(Distillation, DigitsClassifier):
        ...     def training_step(self, batch, batch_idx):
        ...         return self.distill(self(batch[0]), batch)
        >>> def trained(kind, width, noise, teachers=None):
        ...     _ = torch.manual_seed(0)
        ...     network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        ...     model = kind(network)
        ...     model.teachers = teachers
        ...     trainer = Trainer(max_epochs=10, **QUIET)
        ...     trainer.fit(model, DigitsData(label_noise=noise))
        ...     return model, float(trainer.callback_metrics["val_accuracy"])
        >>> teacher, _ = trained(DigitsClassifier, 256, noise=0.0)
        >>> _, alone = trained(DigitsClassifier, 16, noise=0.3)
        >>> student, taught = trained(Student, 16, noise=0.3, teachers=Teachers(teacher))
        >>> taught > alone + 0.02  # 0.95 and 0.91, by true labels
        True

        The student holds nothing of the teacher:

        >>> student.state_dict().keys() == DigitsClassifier(student.network).state_dict().keys()
        True
    """

    teachers: Teachers | None = None
    _lessons: _Lessons | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a class in which ``configure_callbacks`` of another base would come first.

        Raises:
            TypeError: If it would.
        """
        super().__init_subclass__(**options)
        check_first(cls, Distillation, "configure_callbacks")

    def distill(
        self,
        student_logits: Tensor,
        batch: Any,
        *,
        label_loss: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch, shape ().

        Args:
            student_logits: What the module returns for the batch's inputs, shape (n, classes, ...).
            batch: As ``training_step`` got it; for other batches than tuples of inputs and labels override
                :meth:`distillation_inputs` and :meth:`distillation_labels`.
            label_loss: The loss on the labels, if another than plain cross entropy is meant.
            mask: True for samples and positions at which teachers count, shape (n, ...); ``None`` for all.

        Raises:
            TypeError: If ``teachers`` is not set, or logits are no tensors.
            ValueError: If logits, labels or hidden features do not fit.
        """
        lessons, teachers = self._lessons_of_run(), self.given_teachers()
        alpha, temperature, feature_weight = (
            first_value(teachers, name) if lessons is None else lessons.value(teachers, name)
            for name in ("alpha", "temperature", "feature_weight")
        )
        watched = lessons.watched if lessons is not None and torch.is_grad_enabled() else None
        found, logits = dict[str, Tensor](), list[Tensor]()
        loss = as_logits(student_logits).new_zeros(())
        if alpha > 0 or watched is not None:
            logits = self.ask_teachers(batch) if lessons is None else lessons.logits(self, batch)
        if alpha < 1:
            found["hard"] = self._label_loss(student_logits, batch) if label_loss is None else label_loss
            loss = (1 - alpha) * found["hard"]
        if alpha > 0:
            found["soft"] = distillation_loss(
                student_logits, logits, temperature=temperature, weights=teachers.weights, mask=mask
            )
            loss = loss + alpha * found["soft"]
        if watched is not None:
            found["features"] = matched_loss(watched.taken(), getattr(self, PROJECTIONS, None))
            loss = loss + feature_weight * found["features"]
        self._note(lessons, found, student_logits, logits)
        return loss

    # What may be overridden, for other batches than tuples of inputs and labels.

    def distillation_inputs(self, batch: Any) -> Any:
        """Return what a teacher gets of a batch: by default its first entry, or all of a tensor."""
        return batch if isinstance(batch, Tensor) else taken_entry(batch, 0, name="distillation_inputs")

    def distillation_labels(self, batch: Any) -> Tensor:
        """Return the labels of a batch, classes or probabilities: by default its second entry."""
        try:
            return taken_entry(batch, 1, name="distillation_labels")
        except ValueError as error:
            raise ValueError(
                f"a batch must hold labels where alpha is below 1; {error}: override distillation_labels if "
                "they are elsewhere"
            ) from None

    def distillation_indices(self, batch: Any) -> Tensor:
        """Return the samples' indices in the dataset, shape (n,), for cached logits: by default its third."""
        return taken_entry(batch, 2, name="distillation_indices")

    def teacher_logits(self, network: nn.Module, batch: Any) -> Tensor:
        """Return what a teacher makes of a batch, shape (n, classes, ...): by default what it returns."""
        logits: Tensor = network(in_its_precision(network, self.distillation_inputs(batch)))
        return logits

    # What the mixin and its part of the run do.

    def given_teachers(self) -> Teachers:
        """Return ``teachers``.

        Raises:
            TypeError: If it holds no such object.
        """
        if not isinstance(self.teachers, Teachers):
            # A module that is assigned is filed away by torch, behind the default.
            held = cast("LightningModule", self)._modules.get("teachers", self.teachers)
            raise TypeError(
                f"teachers of {type(self).__name__} must be Teachers(...), as in self.teachers = "
                f"Teachers(network), got {held!r:.80}"
            )
        return self.teachers

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Return the callbacks of other bases, and the mixin's part of the run."""
        module = cast("LightningModule", self)
        found = super().configure_callbacks()  # type: ignore[misc]  # LightningModule has it
        own = [found] if not isinstance(found, Sequence) else list(found)
        in_run = (each for each in callbacks_of(module.trainer) if isinstance(each, _Lessons))
        self._lessons = next(in_run, None) or _Lessons()
        return [*own, self._lessons]

    def ask_teachers(self, batch: Any) -> list[Tensor]:
        """Return each teacher's logits of a batch, in evaluation mode and without gradients."""
        found, device = [], cast("LightningModule", self).device
        for network in (teacher.network.eval() for teacher in self.given_teachers().members):
            first = next(itertools.chain(network.parameters(), network.buffers()), None)
            # Not each time: within functions of torch.func a move to the same device would damage weights.
            if first is not None and first.device != device:
                network.to(device)
            with torch.no_grad():
                found.append(self.teacher_logits(network, batch))
        return found

    def build_projections(self, inputs: Any) -> None:
        """Make the projections of hidden features, where widths differ, as layers of the module.

        To be called at the end of ``__init__``, before optimizers and wrappers look for layers.

        Args:
            inputs: Some that the module and its teachers take, such as zeros, of at least one sample.

        Raises:
            ValueError: If patterns match no layers, or features differ in more than their width.
        """
        student = cast("LightningModule", self)
        watched = HiddenFeatures(student, self.given_teachers().members)
        modes = {part: part.training for part in student.modules()}
        watched.open()
        try:
            student.eval()(inputs)
            with torch.no_grad():
                for network in (teacher.network for teacher in self.given_teachers().members):
                    network.eval()(in_its_precision(network, inputs))
            made = [projection_for(own, theirs, names=names) for names, own, theirs in watched.taken()]
        finally:
            watched.close()
            for part, training in modes.items():
                part.training = training
        setattr(student, PROJECTIONS, nn.ModuleList(made))

    def _lessons_of_run(self) -> _Lessons | None:
        """Return the mixin's part of the run; ``None`` outside of any."""
        if cast("LightningModule", self)._trainer is None:
            return None
        if self._lessons is None:
            raise RuntimeError(
                f"configure_callbacks of {type(self).__name__} must return those of super() too, got others "
                "without the part of Distillation"
            )
        return self._lessons

    def _label_loss(self, logits: Tensor, batch: Any) -> Tensor:
        labels = self.distillation_labels(batch)
        check_labels(labels, logits, values=self._lessons is None or self._lessons.looks)
        try:
            return cross_entropy(logits, labels)
        except IndexError:
            check_labels(labels, logits, values=True)
            raise

    def _note(
        self, lessons: _Lessons | None, found: dict[str, Tensor], student: Tensor, teachers: list[Tensor]
    ) -> None:
        module = cast("LightningModule", self)
        if lessons is None or not lessons.notes(module.trainer):
            return
        values: dict[str, Any] = {name: value.detach() for name, value in found.items()}
        if teachers:
            weights = self.given_teachers().weights
            values["agreement"] = agreement(student.detach(), teachers, weights)
        lessons.report(module.trainer, module, **values)
