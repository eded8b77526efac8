"""Progressive unfreezing: the head learns first, then stage after stage towards the input.

    rate of stage k = base rate * lr_factor ** k,    k = 0 for the head

Stage k opens k * ``at`` after the start of the run, at a moment of its own, or when a metric stalls. All
parameters stay in the optimizer from the start and only ``requires_grad`` moves, so that parameter
groups, schedules and checkpoints never change their shape.

Reference: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018,
https://arxiv.org/abs/1801.06146, sections 3.2 (rates by layer, 2.6) and 3.3 (gradual unfreezing).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, final

from torch import nn

from lightning_tricks.core import checks
from lightning_tricks.core.checks import listed
from lightning_tricks.core.conflicts import ConflictError
from lightning_tricks.core.groups import group_sizes
from lightning_tricks.core.partition import partition, written
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.lifecycle.notice import say, warn
from lightning_tricks.lifecycle.seal import unsealed
from lightning_tricks.lifecycle.strategies import BeforeLoad, check_places, follow_trainable
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.lifecycle.watching import check_validation, validated
from lightning_tricks.network.openings import Trigger, opening_moments
from lightning_tricks.network.stage_table import STAGE_COLUMNS, stage_rows
from lightning_tricks.network.stages import (
    check_factor,
    check_optimizers,
    check_same,
    open_stages_,
    split_by_stage_,
)
from lightning_tricks.network.statistics import FrozenStatistics

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim
    from lightning_tricks.core.duration import Duration

__all__ = ["ProgressiveUnfreeze"]

_POLICIES = ("frozen", "train")


@final
@dataclass(eq=False, repr=False, kw_only=True)
class ProgressiveUnfreeze(Technique):
    """Open the network stage by stage, from the head down (:func:`opening_moments`).

    * **When** before the first batch whose step lies at or past a stage's moment, never within an
      accumulation. No stage opens before the one ahead of it.
    * **Changes** ``requires_grad`` of the parameters in ``stages``, also of those that were frozen before
      the run: they open with their stage, while frozen parameters in no stage stay frozen. Layers with
      running statistics whose parameters are all frozen normalise with these and leave them as they are.
      Each parameter group is split by stage, with a rate of its own. After the run ``requires_grad`` and
      the layers' modes are as before it.
    * **Logs** ``progressive_unfreeze/stage`` (open stages) and ``/trainable`` (their parameters); prints a
      table of the stages at the start.
    * **Saves** how many stages are open, which parameters each holds, and how long the metric has stalled.
      Resumed with other stages or another ``lr_factor`` is an error.
    * **Cost** none, and a shorter backward pass while the layers next to the input are frozen. A compiled
      module is compiled anew at each opening; after eight versions torch lets it run uncompiled.
    * **Use** to fine-tune a pretrained network with few examples; **not** to train from scratch.

    Args:
        stages: For each stage its name patterns, from the first opened to the last; see
            :func:`propose_stages`. Each parameter that requires a gradient is in exactly one.
        at: Distance between two openings in optimizer steps, epochs or percent of the run; or a list with
            a moment for each stage but the first; or a policy such as ``Plateau("val_loss")``.
        lr_factor: Ratio of the rates of a stage and the one opened before it, above 0. With 1 no parameter
            group is split, as a scheduler from ``configure_optimizers`` needs it.
        norm_stats: ``"frozen"``, or ``"train"`` to let running statistics of frozen layers move.

    Example:
        >>> ProgressiveUnfreeze(stages=["head", ("body.*", "embed")], at="20%", lr_factor=0.5)
        ProgressiveUnfreeze(stages=['head', ('body.*', 'embed')], at='20%', lr_factor=0.5, \
norm_stats='frozen')
    """

    stages: Sequence[Patterns]
    at: int | str | list[int | str] | Trigger = "1 epoch"
    lr_factor: float = 1 / 2.6
    norm_stats: Literal["frozen", "train"] = "frozen"
    _moments: tuple[Duration, ...] = field(default=(), init=False, repr=False)
    _chosen: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _members: list[dict[str, nn.Parameter]] = field(default_factory=list, init=False, repr=False)
    _found: dict[str, Any] | None = field(default=None, init=False, repr=False)
    _found_sizes: list[list[int]] = field(default_factory=list, init=False, repr=False)
    _module: nn.Module | None = field(default=None, init=False, repr=False)
    _before: dict[nn.Parameter, bool] = field(default_factory=dict, init=False, repr=False)
    _statistics: FrozenStatistics = field(default_factory=FrozenStatistics, init=False, repr=False)
    _fresh: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _due: int = field(default=1, init=False, repr=False)
    _opened: int = field(default=1, init=False, repr=False)
    _trainable: int = field(default=0, init=False, repr=False)
    _before_load: BeforeLoad | None = field(default=None, init=False, repr=False)
    _between_steps: bool = field(default=True, init=False, repr=False)
    _watch: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.stages, list | tuple) or not self.stages:
            raise TypeError(f"stages must be a list with the patterns of each stage, got {self.stages!r}")
        for index, patterns in enumerate(self.stages):
            as_patterns(f"stages[{index}]", patterns)
        # YAML has no tuples; settings that mean the same are to be written the same.
        self.stages = [tuple(each) if isinstance(each, list) else each for each in self.stages]
        check_factor(self.lr_factor, len(self.stages))
        checks.one_of("norm_stats", self.norm_stats, _POLICIES)
        if isinstance(self.at, Trigger):
            self._watch = self.at.start()
        else:
            self._moments = opening_moments(self.at, len(self.stages) - 1)

    def attach(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._found, self._found_sizes = None, []

    def read_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        entry = unsealed(checkpoint, self.state_key)
        self._found = None if entry is None else entry["state"]
        self._found_sizes = group_sizes(
            each["param_groups"] for each in checkpoint.get("optimizer_states", [])
        )
        if self._module is not None:  # sharding strategies load after ``prepare``
            self._accept_found()

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._members = partition(pl_module, self.stages, name="stages", part="stage")
        self._chosen = {name: p for stage in self._members for name, p in stage.items()}
        if self.lr_factor != 1 and trainer.strategy.lr_scheduler_configs:
            raise ConflictError(
                f"lr_factor must be 1 with a scheduler of {type(pl_module).__name__}.configure_optimizers, "
                f"which was built before parameter groups are split, got {self.lr_factor!r}: "
                "set lr_factor=1, or return no scheduler"
            )
        self._accept_found()
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        check_optimizers(trainer.optimizers, self._members, self._due, scaled=scaled)

    def _accept_found(self) -> None:
        # Before Lightning loads the optimizers: torch would find other groups and not say why.
        if self._found is not None:
            check_same(self._found, self._members, self.lr_factor)
            self._due = self._found["opened"]

    def claims(self) -> Iterable[Claim]:
        slots = ("requires_grad", "param_groups") if self.lr_factor != 1 else ("requires_grad",)
        return [self.claim(slot, self._chosen) for slot in slots]

    def regroup(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.lr_factor != 1:
            self._split(trainer)
        # Not in ``prepare``, where another technique may yet look at what the user froze.
        self._module = pl_module
        self._before = {parameter: parameter.requires_grad for parameter in self._chosen.values()}
        open_stages_(self._members, self._due)
        self._before_load = BeforeLoad(trainer.strategy, partial(self._foresee, trainer, pl_module))

    def _foresee(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Open what was open when ``checkpoint`` was written: only so do its optimizers fit."""
        self.read_checkpoint(trainer, pl_module, checkpoint)
        check_places(trainer, checkpoint)
        if self._found is not None:
            open_stages_(self._members, self._found["applied"])

    def _split(self, trainer: Trainer) -> None:
        depths = {p: depth for depth, stage in enumerate(self._members) for p in stage.values()}
        for optimizer in trainer.optimizers:
            split_by_stage_(optimizer, depths, self.lr_factor)
        sizes = group_sizes(optimizer.param_groups for optimizer in trainer.optimizers)
        if self._found is None and self._found_sizes not in ([], sizes):
            raise ValueError(
                f"lr_factor must be 1 to go on from a checkpoint written without {self.state_key}, got "
                f"{self.lr_factor!r}: its optimizers have parameter groups of {self._found_sizes} tensors, "
                f"those of this run of {sizes}"
            )

    def restore(self, state: dict[str, Any]) -> None:
        if state["watch"].keys() == self._watch.keys():
            self._watch = dict(state["watch"])

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(self.at, Trigger):
            check_validation(trainer, "at", self.at.monitor)
        for moment in self._moments:
            self.clock.reached(moment)  # says now, and not in some later epoch, what cannot be reckoned
        if self.norm_stats == "frozen":
            self._statistics = FrozenStatistics(pl_module)
        self._between_steps = True
        self._count_due()
        self._apply(trainer, pl_module, self._due)
        self._fresh = {name: p for stage in self._members[: self._opened] for name, p in stage.items()}
        rows = stage_rows(pl_module, self.stages, self._members, self._opens(), self.lr_factor)
        title = f"{self.state_key}: {self._opened} of {len(self.stages)} stages open"
        say(trainer, text_table(title, STAGE_COLUMNS, rows))

    def _opens(self) -> list[str]:
        if isinstance(self.at, Trigger):
            return ["start"] + [f"{self.at.monitor} stalls"] * (len(self.stages) - 1)
        return ["start", *map(str, self._moments)]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # Here alone, since Lightning skips ``on_train_epoch_start`` when it resumes within an epoch, and
        # puts the modes of layers back after ``on_validation_end``.
        if self._between_steps:
            self._count_due()
            if self._due > self._opened:
                self._apply(trainer, pl_module, self._due)
        self._statistics.hold()
        self.report(trainer, pl_module, stage=self._opened, trainable=self._trainable)

    def _count_due(self) -> None:
        for moment in self._moments[self._due - 1 :]:
            if not self.clock.reached(moment):
                break
            self._due += 1

    def _apply(self, trainer: Trainer, pl_module: LightningModule, open_stages: int) -> None:
        """Bring gradients and the modes of layers in line with how many stages are open."""
        self._fresh |= open_stages_(self._members, open_stages)
        self._opened = open_stages
        follow_trainable(trainer)
        self._trainable = sum(p.numel() for stage in self._members[:open_stages] for p in stage.values())
        self._statistics.update()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fresh:
            self._fresh = {name: p for name, p in self._fresh.items() if p.grad is None}

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if not self._fresh:
            return
        stepped = {p for group in optimizer.param_groups for p in group["params"]}
        silent = [name for name, p in self._fresh.items() if p in stepped and p.grad is None]
        self._fresh = {name: p for name, p in self._fresh.items() if p not in stepped}
        if silent:
            warn(
                trainer,
                f"open parameters should get a gradient in their first step, got none for {listed(silent)}",
            )

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._between_steps = self.clock.attempted

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        at = self.at
        if not isinstance(at, Trigger) or self._due == len(self.stages):
            return
        value = validated(self, trainer, at.monitor)
        if value is None or self._opened < self._due:  # one has yet to act
            return
        self._watch = at.observe(self._watch, value)
        # One decision for all processes, or their trainable parameters would differ.
        if trainer.strategy.reduce_boolean_decision(at.fires(self._watch), all=False):
            self._watch = at.rest(self._watch)
            self._due += 1

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if closed := [written(patterns) for patterns in self.stages[self._opened :]]:
            never = f"{len(closed)} never did: {'; '.join(closed)}"
            warn(trainer, f"each stage should open in the run, but {never}")

    def undo(self) -> None:
        if self._before_load is not None:
            self._before_load.remove()
        for parameter, flag in self._before.items():
            parameter.requires_grad_(flag)
        # After an error in validation the whole network is left in its evaluation mode.
        self._statistics.release(training=self._module is not None and self._module.training)
        self._module, self._before, self._fresh = None, {}, {}

    def outcome(self) -> dict[str, float | int | str]:
        return {"stages": len(self.stages), "opened": self._opened, "trainable": self._trainable}

    def saved(self) -> dict[str, Any]:
        return {
            "opened": self._due,
            "applied": self._opened,
            "watch": dict(self._watch),
            "stages": [list(stage) for stage in self._members],
            "lr_factor": self.lr_factor,
        }
