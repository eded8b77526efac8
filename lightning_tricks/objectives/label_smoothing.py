"""Label smoothing: a share of every label's weight is spread evenly over all classes.

    t <- (1 - smoothing) t + smoothing / classes

``t`` is a label as probabilities. Logits are pushed apart no further than the smoothed labels ask for, and
wrong labels count less.

Reference: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015,
https://arxiv.org/abs/1512.00567, section 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from lightning_tricks.core import checks
from lightning_tricks.core.compiled import is_compiled
from lightning_tricks.core.conflicts import Claim
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.core.select import Patterns, as_patterns, select_layers
from lightning_tricks.lifecycle.notice import say, warn
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.objectives.smoothed_losses import check_classes

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.hooks import RemovableHandle

__all__ = ["LabelSmoothing"]


def heeds_smoothing(loss: nn.CrossEntropyLoss) -> bool:
    """Return whether ``loss`` looks at its ``label_smoothing``; ``True`` if it cannot be tried out.

    Example:
        >>> heeds_smoothing(nn.CrossEntropyLoss())
        True
    """
    if type(loss).forward is nn.CrossEntropyLoss.forward:
        return True
    trial, weight = deepcopy(loss), loss.weight
    like = torch.zeros(2) if weight is None else weight
    logits = torch.arange(float(len(like)), device=like.device, dtype=like.dtype)[None]
    target = torch.tensor([int(loss.ignore_index == 0)], device=like.device)
    values = []
    for smoothing in (0.0, 0.5):
        trial.label_smoothing = smoothing
        try:
            values.append(trial(logits, target))
        except Exception:  # it takes something else
            return True
    return not torch.equal(*values)


def check_labels(name: str, loss: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse labels outside the classes that ``loss`` is about to get in training; a hook of its call.

    Args:
        name: Of ``loss``.
        loss: Has torch's own forward.
        args: Of the call.
        kwargs: Likewise.

    Raises:
        ValueError: If there are some, on the CPU.
    """
    assert isinstance(loss, nn.CrossEntropyLoss)
    taken = dict(zip(("input", "target"), args, strict=False)) | kwargs
    logits, labels = taken["input"], taken["target"]
    if loss.training and logits.ndim and not labels.is_floating_point():
        check_classes(f"labels of {name!r}", labels, logits.shape[min(1, logits.ndim - 1)], loss.ignore_index)


@final
@dataclass(eq=False, repr=False, kw_only=True)
class LabelSmoothing(Technique):
    """Smooth the labels of the module's ``nn.CrossEntropyLoss`` objects, in training only (formula above).

    A schedule may drive it. Who calls the loss has ``smoothed_cross_entropy`` and ``smooth_labels``, with
    class weights, ignored and soft labels, pixels, and binary labels.

    * **When** from before each training batch until after it; the same for all batches of an accumulation.
    * **Changes** ``label_smoothing`` of the loss objects, which have their own again in every evaluation and
      after the run: validation loss stays comparable, and labels as metrics see them are not touched. What a
      module calls as ``torch.nn.functional.cross_entropy`` it does not see: :func:`smoothed_cross_entropy`.
    * **Logs** ``label_smoothing/smoothing``; says at the start which losses it smooths.
    * **Saves** nothing but how the schedule lies.
    * **Cost** that of torch's own smoothing. A compiled loss is compiled anew for each new value; after eight
      torch lets it run uncompiled, or stops under ``fullgraph=True``, so give it steps rather than a slope.
    * **Use** 0.1 for classifiers that are too sure of themselves or whose labels are partly wrong; **not**
      for a network that will teach another, nor where small differences of probabilities matter, nor with
      labels that are smoothed already.

    Labels outside the classes are refused, on the CPU, where a look at them waits for nothing.
    Class weights, ``ignore_index``, labels as probabilities and the shapes of segmentation are torch's own.
    On digits of whose labels 30 % are drawn anew, accuracy on true ones rises from 89 % to 92 % with 0.1 and
    to 94 % with 0.3, with each of five seeds (``python -m benchmarks.label_noise``).

    Args:
        smoothing: Share of each label that is spread over all classes, in [0, 1); a number, a schedule or its
            text.
        losses: Patterns of the loss objects, by their names or types, or the names of what holds them.

    Example:
        Two layers in plain PyTorch learn 1,000 handwritten digits, of whose labels 30 % are drawn anew.
        ``DigitsClassifier`` trains any network on them by SGD and has its cross entropy as an object,
        ``self.criterion = nn.CrossEntropyLoss()``; with ``QUIET`` the Trainer shows no bars and writes no
        files.

        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from torch import nn
        >>> from lightning_tricks import LabelSmoothing, to_yaml
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> data = DigitsData(label_noise=0.3)
        >>> def trained(*techniques):
        ...     _ = torch.manual_seed(0)
        ...     network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        ...     model = DigitsClassifier(network)
        ...     trainer = Trainer(max_epochs=20, callbacks=list(techniques), **QUIET)
        ...     trainer.fit(model, data)
        ...     return model, trainer.callback_metrics

        Validation digits have true labels. What fits the wrong ones less gets more of the others right:

        >>> _, plain = trained()
        >>> smoothing = LabelSmoothing(smoothing=0.1)
        >>> model, smoothed = trained(smoothing)
        LabelSmoothing smooths the labels of 'criterion'
        >>> bool(smoothed["val_accuracy"] > plain["val_accuracy"] + 0.01)
        True

        In every validation, and after the run, the loss is as it was:

        >>> model.criterion.label_smoothing
        0.0

        The same for LightningCLI, with all settings there are:

        >>> print(to_yaml(smoothing), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.LabelSmoothing
            init_args:
              smoothing: 0.1
              losses: '*'
    """

    smoothing: float | str | Schedule = 0.1
    losses: Patterns = "*"
    _losses: dict[str, nn.CrossEntropyLoss] = field(default_factory=dict, init=False, repr=False)
    _own: dict[nn.CrossEntropyLoss, float] = field(default_factory=dict, init=False, repr=False)
    _course: Course | None = field(default=None, init=False, repr=False)
    _uncalled: dict[nn.Module, str] = field(default_factory=dict, init=False, repr=False)
    _watches: list[RemovableHandle] = field(default_factory=list, init=False, repr=False)
    _checks: list[RemovableHandle] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        as_schedule("smoothing", self.smoothing, 0.0, 1.0, open_high=True)
        as_patterns("losses", self.losses)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not any(isinstance(layer, nn.CrossEntropyLoss) for layer in pl_module.modules()):
            raise ValueError(
                f"{self.state_key} needs an nn.CrossEntropyLoss among the module's attributes, got none in "
                f"{type(pl_module).__name__}: assign one in __init__ and call it, or let training_step call "
                "smoothed_cross_entropy instead"
            )
        found = select_layers(
            pl_module,
            self.losses,
            lambda layer: isinstance(layer, nn.CrossEntropyLoss),
            what="an nn.CrossEntropyLoss",
            name="losses",
        )
        self._losses = {name: loss for name, loss in found.items() if isinstance(loss, nn.CrossEntropyLoss)}
        for name, loss in self._losses.items():
            if not heeds_smoothing(loss):
                kind = type(loss).__name__
                raise ValueError(
                    f"losses must heed label_smoothing, got {name!r}: forward of {kind} does not"
                )

    def claims(self) -> Iterator[Claim]:
        yield self.claim("label_smoothing", self._losses)
        for name, loss in self._losses.items():
            if loss.label_smoothing:
                owner = f"{name!r} with label_smoothing={loss.label_smoothing} of its own"
                yield Claim("label_smoothing", owner, frozenset({id(loss)}), "give it none")

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._course = self.lay(trainer, "smoothing", as_schedule("smoothing", self.smoothing))
        self._own = {loss: loss.label_smoothing for loss in self._losses.values()}
        self._uncalled = {} if is_compiled(pl_module) else {loss: name for name, loss in self._losses.items()}
        self._watches = [loss.register_forward_pre_hook(self._note) for loss in self._uncalled]
        self._checks = [
            loss.register_forward_pre_hook(partial(check_labels, name), with_kwargs=True)
            for loss, name in self._uncalled.items()
            if type(loss).forward is nn.CrossEntropyLoss.forward  # others may take other shapes
        ]
        say(trainer, f"{self.state_key} smooths the labels of {checks.listed(list(self._losses))}")

    def _note(self, loss: nn.Module, _: Any) -> None:
        self._uncalled.pop(loss, None)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert self._course is not None
        smoothing = self._course(self.clock.position)
        for loss in self._own:
            loss.label_smoothing = smoothing
        self.report(trainer, pl_module, smoothing=smoothing)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._watches and self._uncalled:
            idle = checks.listed(list(self._uncalled.values()))
            warn(
                trainer,
                f"{self.state_key}: the first batch did not call {idle}, where nothing is smoothed then: let "
                "training_step call it, or leave it out by losses; where training_step calls the function "
                "cross_entropy, let that be smoothed_cross_entropy",
            )
        self._give_back()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back()  # a batch that a hook broke off has no end

    def _give_back(self) -> None:
        while self._watches:
            self._watches.pop().remove()
        self._uncalled = {}
        for loss, smoothing in self._own.items():
            loss.label_smoothing = smoothing

    def undo(self) -> None:
        self._give_back()
        while self._checks:
            self._checks.pop().remove()
        self._own = {}
