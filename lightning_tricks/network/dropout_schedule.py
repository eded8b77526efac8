"""Dropout, or stochastic depth (DropPath), whose probability changes over the run.

    p_t = schedule(t),    t: optimizer steps, from 0

Early dropout is on first and off later, for networks that under-fit; late dropout the other way round, for
those that over-fit; curriculum dropout rises smoothly.

References: Liu et al., "Dropout Reduces Underfitting", 2023, https://arxiv.org/abs/2303.01500; Morerio et
al., "Curriculum Dropout", 2017, https://arxiv.org/abs/1703.06229.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from torch import nn

from lightning_tricks.core.checks import listed
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.lifecycle.notice import say
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.network.dropouts import dropout_layers, rate_of, set_rate_

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["DropoutSchedule"]


@final
@dataclass(eq=False, repr=False, kw_only=True)
class DropoutSchedule(Technique):
    """Drive the probability of dropout and stochastic depth over the run (:func:`dropout_layers`).

    Dropout may come early or late, or rise.

    * **When** before each training batch, the same for all batches of an accumulation.
    * **Changes** the probability of the layers that ``params`` matches, whatever their own was, 0 included;
      each has its own again after the run. What a module drops with ``torch.nn.functional.dropout`` it does
      not see. Evaluations drop nothing, as ever.
    * **Logs** ``dropout_schedule/p``; says at the start which layers it drives.
    * **Saves** nothing but how the schedule lies.
    * **Cost** none. A compiled module is compiled anew for new probabilities; after eight versions torch
      lets it run uncompiled, so give it steps rather than a slope.
    * **Use** early dropout, ``"constant(0.1, over='20%') >> constant(0.0)"`` or ``"0.1 * linear(to=0.0,
      over='20%')"``, where the network under-fits; late dropout, ``"constant(0.0, over='50%') >>
      constant(0.4)"``, where it over-fits; a curriculum, ``"linear(to=0.25, start=0.0)"``; **not** with
      several probabilities by design that one value should not level: give each its own, with a ``label``.

    Args:
        schedule: The probability, in [0, 1); a number, a schedule or its text.
        params: Patterns of the layers, by their names or types, or the names of what holds them.

    Example:
        Two layers with dropout between them, in plain PyTorch, and 256 handwritten digits.
        ``DigitsClassifier`` trains any network on them by cross entropy and SGD; with ``QUIET`` the Trainer
        shows no bars and writes no files.

        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import LambdaCallback
        >>> from torch import nn
        >>> from lightning_tricks import DropoutSchedule, to_yaml
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> data = DigitsData(training=256)
        >>> _ = torch.manual_seed(0)
        >>> dropout = nn.Dropout(0.5)
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), dropout, nn.Linear(32, 10))

        Late dropout: none while the network still fits too little, 0.4 in the second half, where it would fit
        too much. A percentage is one of the run, however long that is. We write the probability down after
        each epoch:

        >>> def probabilities(technique):
        ...     found = []
        ...     look = LambdaCallback(on_train_epoch_end=lambda *_: found.append(round(dropout.p, 2)))
        ...     trainer = Trainer(max_epochs=6, callbacks=[technique, look], **QUIET)
        ...     trainer.fit(DigitsClassifier(network), data)
        ...     return found
        >>> late = DropoutSchedule(schedule="constant(0.0, over='50%') >> constant(0.4)")
        >>> probabilities(late)
        DropoutSchedule drives the dropout of 'network.3'
        [0.0, 0.0, 0.0, 0.4, 0.4, 0.4]

        A curriculum rises from step to step:

        >>> probabilities(DropoutSchedule(schedule="linear(to=0.25, start=0.0)"))
        DropoutSchedule drives the dropout of 'network.3'
        [0.03, 0.07, 0.11, 0.16, 0.2, 0.24]

        After each run the layer has its own probability again:

        >>> dropout.p
        0.5

        The same for LightningCLI, with all settings there are:

        >>> print(to_yaml(late), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.DropoutSchedule
            init_args:
              schedule: constant(0.0, over='50%') >> constant(0.4)
              params: '*'
    """

    schedule: float | str | Schedule
    params: Patterns = "*"
    _layers: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)
    _own: dict[nn.Module, float] = field(default_factory=dict, init=False, repr=False)
    _course: Course | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        as_schedule("schedule", self.schedule, 0.0, 1.0, open_high=True)
        as_patterns("params", self.params)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._layers = dropout_layers(pl_module, self.params)

    def claims(self) -> Iterable[Claim]:
        return [self.claim("dropout", self._layers)]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._course = self.lay(trainer, "schedule", as_schedule("schedule", self.schedule))
        self._own = {layer: rate_of(layer) for layer in self._layers.values()}
        say(trainer, f"{self.state_key} drives the dropout of {listed(list(self._layers))}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert self._course is not None
        rate = self._course(self.clock.position)
        for layer in self._own:
            set_rate_(layer, rate)
        self.report(trainer, pl_module, p=rate)

    def undo(self) -> None:
        for layer, rate in self._own.items():
            set_rate_(layer, rate)
        self._own = {}
