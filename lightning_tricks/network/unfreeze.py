"""Progressive unfreezing: the head learns first, then stage after stage towards the input.

    rate of stage k = base rate * lr_factor ** k,    k = 0 for the head

Stage k opens k * ``at`` after the start of the run, at a moment of its own, or when a metric stalls; with
``warmup`` its rate rises from then on (:mod:`~lightning_tricks.network.rewarming`). All parameters stay in
the optimizer from the start and only ``requires_grad`` moves, so that parameter groups, schedules and
checkpoints never change their shape, and an optimizer has memory for what learns alone.

Reference: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018,
https://arxiv.org/abs/1801.06146, sections 3.2 (rates by layer, 2.6) and 3.3 (gradual unfreezing).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, final

from torch import nn

from lightning_tricks.core import checks
from lightning_tricks.core.duration import as_duration
from lightning_tricks.core.partition import check_covered, written
from lightning_tricks.core.select import Patterns
from lightning_tricks.lifecycle.notice import say, warn
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.network.agenda import Agenda
from lightning_tricks.network.division import Division, division_table
from lightning_tricks.network.first_gradients import FirstGradients
from lightning_tricks.network.openings import Trigger
from lightning_tricks.network.rewarming import Rewarming
from lightning_tricks.network.stages import as_stages, check_factor, check_optimizers, open_stages_
from lightning_tricks.network.statistics import DROPOUT, NORM_STATS, frozen_layers
from lightning_tricks.network.trainable import Trainable

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["ProgressiveUnfreeze"]


@final
@dataclass(eq=False, repr=False, kw_only=True)
class ProgressiveUnfreeze(Technique):
    """Fine-tune the network stage by stage, from the head down (:func:`opening_moments`).

    Stages open at moments or when a metric stalls; deeper ones have lower rates, which rise from then on.

    * **When** before the first batch whose step lies at or past a stage's moment, never within an
      accumulation. No stage opens before the one ahead of it.
    * **Changes** ``requires_grad`` of the parameters in ``stages``, also of those that were frozen before the
      run: they open with their stage, while frozen parameters in no stage stay frozen. Layers with running
      statistics whose parameters are all frozen normalise with these and leave them as they are. Each
      parameter group is split by stage, with a rate of its own. After the run, under FSDP1 before the next,
      ``requires_grad`` and the layers' modes are as before it.
    * **Logs** ``progressive_unfreeze/stage`` (open stages) and ``/trainable`` (their parameters); prints a
      table of the stages at the start. Lightning's LearningRateMonitor shows rates that rise.
    * **Saves** how many stages are open, which parameters each holds, since when their rates rise, and how
      long the metric has stalled. Resumed with other stages or another ``lr_factor`` is an error.
    * **Cost** less than training all: a shorter backward pass while the layers next to the input are frozen,
      and optimizer memory for open stages alone (AdamW on 4 equal layers in 4 stages: 2, 4, 6, then 8 bytes
      per parameter of the network). A compiled module is compiled anew at each opening; after eight versions
      torch lets it run uncompiled.
    * **Use** to fine-tune a pretrained network with few examples; **not** to train from scratch.

    Args:
        stages: For each stage its name patterns or module types, from the first opened to the last, such as
            ``["head", "encoder[-4:]", "encoder[:-4]"]``; or how many there are, for stages by depth
            (:func:`propose_stages`). Each parameter that requires a gradient is in exactly one.
        at: Distance between two openings in optimizer steps, epochs or percent of the run; or a list with
            a moment for each stage but the first; or a policy such as ``Plateau("val_loss")``.
        lr_factor: Ratio of the rates of a stage and the one opened before it, above 0. With 1 and no
            ``warmup`` no parameter group is split, as a scheduler from ``configure_optimizers`` needs it.
        warmup: Over which length the rate of a stage rises that opens within the run, in the same forms.
        norm_stats: ``"frozen"``, or ``"train"`` to let running statistics of frozen layers move.
        dropout: ``"on"``, or ``"off"`` to run layers whose parameters are all frozen in evaluation mode.

    Example:
        A network learns the digits 0 to 4, and gets a new head (``QUIET``: without bars and files).

        >>> import torch, yaml
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import LambdaCallback
        >>> from torch import nn
        >>> from lightning_tricks import ProgressiveUnfreeze, propose_stages, to_yaml
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> from lightning_tricks.recipes.residual import ResidualNet
        >>> _ = torch.manual_seed(0)
        >>> network = ResidualNet(widths=(8, 16), classes=5)
        >>> model = DigitsClassifier(network, classes=5)
        >>> Trainer(max_epochs=1, **QUIET).fit(model, DigitsData(classes=range(5), batch_size=16))
        >>> network.head = nn.Linear(16, 5)

        The network proposes its stages. A plan of them is written as YAML for LightningCLI, edited, here to
        let each stage learn for two epochs, and read back. Its table needs no run:

        >>> plan = to_yaml(ProgressiveUnfreeze(stages=propose_stages(model), at="1 epoch"))
        >>> print(plan, end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.ProgressiveUnfreeze
            init_args:
              stages:
              - network.head
              - network.groups
              - network.stem
              at: 1 epoch
              lr_factor: 0.3846153846153846
              warmup: 0
              norm_stats: frozen
              dropout: 'on'
        >>> edited = yaml.safe_load(plan.replace("1 epoch", "2 epochs"))
        >>> unfreeze = ProgressiveUnfreeze(**edited["trainer"]["callbacks"][0]["init_args"])
        >>> print(unfreeze.table(model))
        ProgressiveUnfreeze: 1 of 3 stages open
        | stage | patterns       | opens at | tensors | parameters | rate factor | trainable so far |
        |-------|----------------|----------|---------|------------|-------------|------------------|
        | 1     | network.head   | start    |       2 |         85 | 1           |               85 |
        | 2     | network.groups | 2 epochs |      13 |      4,832 | 0.3846      |            4,917 |
        | 3     | network.stem   | 4 epochs |       3 |         88 | 0.1479      |            5,005 |

        The digits 5 to 9 are new, and few. The run prints the table as it begins; after each epoch we look
        which parts learn. What opens later has a lower rate:

        >>> def look(trainer, model):
        ...     free = {name.split(".")[0]: None for name, p in network.named_parameters() if p.requires_grad}
        ...     print(trainer.current_epoch, *free)
        >>> callbacks = [unfreeze, LambdaCallback(on_train_epoch_end=look)]
        >>> trainer = Trainer(max_epochs=5, check_val_every_n_epoch=5, callbacks=callbacks, **QUIET)
        >>> trainer.fit(model, DigitsData(classes=range(5, 10), training=200, batch_size=16))
        ProgressiveUnfreeze: 1 of 3 stages open
        ...
        0 head
        1 head
        2 groups head
        3 groups head
        4 stem groups head
        >>> [round(group["lr"], 3) for group in trainer.optimizers[0].param_groups]
        [0.05, 0.019, 0.007]
        >>> bool(trainer.callback_metrics["val_accuracy"] > 0.5)
        True
    """

    stages: int | Sequence[Patterns]
    at: int | str | list[int | str] | Trigger = "1 epoch"
    lr_factor: float = 1 / 2.6
    warmup: int | str = 0
    norm_stats: Literal["frozen", "train"] = "frozen"
    dropout: Literal["on", "off"] = "on"
    _agenda: Agenda = field(default_factory=lambda: Agenda([], 1), init=False, repr=False)
    _division: Division = field(default_factory=Division, init=False, repr=False)
    _chosen: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _mine: set[nn.Parameter] = field(default_factory=set, init=False, repr=False)
    _trainable: Trainable = field(default_factory=Trainable, init=False, repr=False)
    _first: FirstGradients = field(default_factory=FirstGradients, init=False, repr=False)
    _rewarming: Rewarming = field(default_factory=Rewarming, init=False, repr=False)
    _opened: int = field(default=1, init=False, repr=False)
    _learning: int = field(default=0, init=False, repr=False)
    _between_steps: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        self.stages = as_stages(self.stages)
        check_factor(self.lr_factor, self._count)
        self._rewarming = Rewarming(as_duration("warmup", self.warmup))
        checks.one_of("norm_stats", self.norm_stats, NORM_STATS)
        checks.one_of("dropout", self.dropout, DROPOUT)
        self._agenda = Agenda(self.at, self._count)

    @property
    def _count(self) -> int:
        return self.stages if isinstance(self.stages, int) else len(self.stages)

    @property
    def _splits(self) -> bool:
        return self.lr_factor != 1 or bool(self._rewarming)

    def table(self, module: nn.Module) -> str:
        """Return the stages that ``module`` would have in a run (:func:`division_table`)."""
        title = f"{self.state_key}: {self._opened} of {self._count} stages open"
        return division_table(title, module, self.stages, self._agenda.written(), self.lr_factor)

    def attach(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._division.forget()

    def read_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._division.read(checkpoint, self.state_key)
        if self._trainable.taken:  # sharding strategies load after ``prepare``
            self._accept_found()

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._division.take(trainer, pl_module, self.stages, self.lr_factor, split=self._splits)
        self._chosen = {name: p for stage in self._division.members for name, p in stage.items()}
        self._mine = {*self._chosen.values(), *(p for p in pl_module.parameters() if not p.requires_grad)}
        self._accept_found()
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        check_optimizers(trainer.optimizers, self._division.members, self._agenda.due, scaled=scaled)

    def _accept_found(self) -> None:
        self._agenda.due = self._division.accept() or self._agenda.due

    def claims(self) -> Iterable[Claim]:
        slots = ["requires_grad", *["param_groups"] * self._splits, *["lr_warmup"] * bool(self._rewarming)]
        return [self.claim(slot, self._chosen) for slot in slots]

    def regroup(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._splits:
            self._division.split(trainer, self.state_key, self.warmup)
        self._trainable.take(self, trainer, pl_module, self._chosen.values(), self._as_found)
        open_stages_(self._division.members, self._agenda.due)

    def _as_found(self) -> None:
        if self._division.found is not None:
            open_stages_(self._division.members, self._division.found["applied"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After all other techniques have frozen what is theirs.
        check_covered(pl_module, self._division.members, name="stages", part="stage")
        if self._rewarming:
            self.conductor.rates.show(trainer)

    def restore(self, state: dict[str, Any]) -> None:
        self._opened = state["applied"]
        self._rewarming.restore(state["rising"])
        self._agenda.restore(state["watch"])

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agenda.begin(self, trainer)
        policies = {"norm_stats": self.norm_stats, "dropout": self.dropout}
        self._trainable.look_after(frozen_layers(pl_module, self._mine, **policies))
        self._between_steps = True
        if self.clock.position == 0:
            self._opened = self._agenda.due  # what is open from the start needs no warm-up of its own
        self._rewarming.begin(self, trainer, self._division.members, self._agenda.due)
        self._apply(trainer)
        begun = self._division.members[: self._opened]
        self._first.await_({name: p for stage in begun for name, p in stage.items()})
        say(trainer, self.table(pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # Here alone, since Lightning skips ``on_train_epoch_start`` when it resumes within an epoch, and
        # puts the modes of layers back after ``on_validation_end``.
        if self._between_steps:
            self._agenda.look(self.clock)
            if self._agenda.due > self._opened:
                self._apply(trainer)
        self.report(trainer, pl_module, stage=self._opened, trainable=self._learning)

    def _apply(self, trainer: Trainer) -> None:
        """Open what is due, and bring gradients, rates and the modes of layers in line."""
        due = self._agenda.due
        self._first.await_(open_stages_(self._division.members, due))
        self._rewarming.open(self, trainer, range(self._opened, due))
        self._opened = due
        self._learning = sum(p.numel() for stage in self._division.members[:due] for p in stage.values())
        self._trainable.follow(self, trainer)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first.look()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if silent := self._first.missing(optimizer):
            warn(trainer, f"open parameters should get a gradient in their first step, got none for {silent}")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._between_steps = self.clock.attempted
        if self._between_steps:
            self._rewarming.advance(self, trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agenda.observe(self, trainer, self._opened)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if closed := [written(patterns) for patterns in self._division.patterns[self._opened :]]:
            never = f"{len(closed)} never did: {'; '.join(closed)}"
            warn(trainer, f"each stage should open in the run, but {never}")

    def undo(self) -> None:
        self._trainable.give_back(self)
        self._first = FirstGradients()

    def outcome(self) -> dict[str, float | int | str]:
        return {"stages": self._count, "opened": self._opened, "trainable": self._learning}

    def saved(self) -> dict[str, Any]:
        return {
            **self._agenda.saved(),
            "applied": self._opened,
            "stages": [list(stage) for stage in self._division.members],
            "lr_factor": self.lr_factor,
            "split": self._splits,
            "rising": self._rewarming.saved(),
        }
