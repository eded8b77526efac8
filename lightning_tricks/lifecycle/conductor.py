"""What all techniques of a run share, done once: clocks, conflicts, the phases of start and end.

The first technique of a Trainer installs one conductor at the head of ``trainer.callbacks``, behind tuners;
so every hook reaches the conductor first. At the start of a run it goes through all techniques phase by
phase, so that their order in the list does not matter:

    configure_model     build (what changes layers), once the module has made its own
    on_fit_start        prepare (choose and check) -> conflicts -> regroup (parameter groups)
    on_train_start      restore (what a checkpoint held) -> initialize (a fresh run) -> begin (the run's
                        length is known)
    before a step       before_step (what looks at weights before anything changes them)
    after a step        after_step (what changes weights of one optimizer)
    on_train_batch_end  after_update (what changes weights that others average, collect, save), if it stepped
    on_train_end        finish, in the order of ``finish_order``

What ``finish`` put into the module is taken back, last first, when the same Trainer fits again.

An error from within a technique, in a phase or in a hook of Lightning's, gets a note that names it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.optim import Optimizer

from lightning_tricks.core.conflicts import ConflictError, check_claims, check_order
from lightning_tricks.lifecycle.building import Built, check_nothing_copied
from lightning_tricks.lifecycle.clock import Clock
from lightning_tricks.lifecycle.error_notes import add_notes
from lightning_tricks.lifecycle.files import is_tuners
from lightning_tricks.lifecycle.horizon import run_horizon
from lightning_tricks.lifecycle.idle_hooks import hide_idle_hooks, show_idle_hooks
from lightning_tricks.lifecycle.joint import Moves
from lightning_tricks.lifecycle.member import Member
from lightning_tricks.lifecycle.modes import Modes
from lightning_tricks.lifecycle.notice import begin_run, callbacks_of, warn
from lightning_tricks.lifecycle.ownership import foreign_claims
from lightning_tricks.lifecycle.rates import Rates
from lightning_tricks.lifecycle.seal import sealed, unsealed
from lightning_tricks.lifecycle.steps import Steps

__all__ = ["Conductor"]

_OF_STEPS = ("before_step", "after_step", "after_update")


class Conductor(Callback):
    """Drives the techniques of one Trainer; added by them, never by a user.

    Attributes:
        clock: Where the run stands.
        logs: Whether Lightning will log the current step.
        initialized: Weights that techniques gave their first values in this run, so that others may, too.
        modes: Which layers techniques keep in evaluation mode.
        moves: What averages are to do together, within a hook.
        rates: What techniques scale learning rates by.
        steps: Which step comes, and when it has ended.
    """

    def __init__(self, trainer: Trainer) -> None:
        """Start with clocks at zero, for ``trainer`` alone."""
        self.clock: Clock = Clock()
        self.logs: bool = False
        self.initialized: set[Tensor] = set()
        self.modes: Modes = Modes()
        self.moves: Moves = Moves()
        self.rates: Rates = Rates()
        self._trainer: weakref.ref[Trainer] | None = weakref.ref(trainer)
        self.steps: Steps = Steps(self._after_step)
        self._told = False
        self._take_back: list[Callable[[], None]] = []
        self._restored: dict[str, Any] | None = None
        self._goes_on = False
        self._built: Built | None = None
        self._acting: dict[str, list[Member]] = {}

    @classmethod
    def of(cls, trainer: Trainer) -> Self:
        """Return the conductor of ``trainer``, installed first of all but tuners if there was none."""
        for callback in callbacks_of(trainer):
            if isinstance(callback, cls) and callback._serves(trainer):
                return callback
        conductor = cls(trainer)
        # One that came along with the callbacks of another Trainer would bring that one's clock.
        others = [callback for callback in callbacks_of(trainer) if not isinstance(callback, cls)]
        at = sum(isinstance(callback, LearningRateFinder | BatchSizeFinder) for callback in others)
        # A new list, because Lightning is iterating over the old one.
        vars(trainer)["callbacks"] = [*others[:at], conductor, *others[at:]]
        return conductor

    @property
    def trainer(self) -> Trainer:
        """The Trainer that it serves."""
        trainer = None if self._trainer is None else self._trainer()
        assert trainer is not None
        return trainer

    def _serves(self, trainer: Trainer) -> bool:
        if self._trainer is None:  # unpickled, together with its Trainer
            self._trainer = weakref.ref(trainer)
        return self._trainer() is trainer

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the reference to the Trainer, which cannot be pickled."""
        return {**vars(self), "_trainer": None, "_built": None, "_acting": {}, "initialized": set()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the reference, so that a copy in the list of another Trainer is known as strange there.

        A copy that is made together with its Trainer serves the Trainer's copy.
        """
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        trainer = memo.get(id(self._trainer and self._trainer()))
        served = self._trainer if trainer is None else weakref.ref(trainer)
        vars(copy).update(deepcopy(self.__getstate__(), memo), _trainer=served)
        return copy

    def on_next_fit(self, undo: Callable[[], None]) -> None:
        """Call ``undo`` when the same Trainer fits again, before a checkpoint loads; last in, first out."""
        self._take_back.append(undo)

    def build_soon(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go through the phase ``build`` in this run, as soon as the module is complete."""
        check_nothing_copied(callbacks_of(trainer))
        if self._built is None:
            self._built = Built(pl_module, lambda: self._build(trainer, pl_module))

    def _build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for member in _in_build_order(trainer):
            member.build(trainer, pl_module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            begin_run(trainer)
            self._goes_on = False
            while self._take_back:
                self._take_back.pop()()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rates = Rates()
        members = _members(trainer)
        _check_names(members)
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            return  # what is left has been handed over to it
        for member in members:
            member.prepare(trainer, pl_module)
        own = (claim for member in members for claim in member.claims())
        check_claims([*foreign_claims(trainer, pl_module), *own])
        check_order([(m.state_key, m.gradient_stage) for m in members if m.gradient_stage])
        # By name, or a run resumed with another order of the list would find other groups.
        for member in sorted(members, key=lambda member: member.state_key):
            member.regroup(trainer, pl_module)
        self.steps.watch(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = trainer.ckpt_path
        resumed = self._goes_on or (path is not None and not is_tuners(path))
        if self._restored is not None:
            self.clock.restore(self._restored)
            self._restored = None
        elif self.clock.position == 0 and pl_module.automatic_optimization:
            # A run that was begun without any technique: with one optimizer, Lightning's count is the same.
            self.clock.position = self.clock.updates = trainer.global_step
        self.clock.epoch = trainer.current_epoch
        self.clock.lay(run_horizon(trainer, self.clock))
        members = _members(trainer)
        # Once for the run: with seven techniques it takes longer than what these do.
        self._acting = {
            phase: [m for m in members if getattr(type(m), phase) is not getattr(Member, phase)]
            for phase in _OF_STEPS
        }
        for member in members:
            member.take_state(trainer)
        if self.clock.position == 0 and not resumed:
            for member in _in_build_order(trainer):
                member.initialize(trainer, pl_module)
        for member in members:
            member.begin(trainer, pl_module)
        hide_idle_hooks([self, *members])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.epoch = trainer.current_epoch

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.clock.begin_batch()
        self.steps.begin_batch()
        self.modes.hold()
        # Once for all techniques: Lightning takes its time to find out.
        self.logs = trainer._logger_connector.should_update_logs

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self.clock.attempted = True
        if self.steps.comes(trainer, pl_module, optimizer):
            for member in self._acting["before_step"]:
                member.before_step(trainer, pl_module, optimizer)

    def on_before_backward(self, *_: Any) -> None:
        self.steps.learned()

    def _after_step(self, optimizer: Optimizer, applied: bool | Tensor) -> None:
        self.clock.count(applied)
        for member in self._acting["after_step"]:
            member.after_step(self.trainer, self.trainer.lightning_module, optimizer, applied)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.clock.end_batch()
        if self.clock.applied is not False:
            for member in self._acting["after_update"]:
                member.after_update(trainer, pl_module)
        steps = self.steps.end_batch()
        if steps > len(trainer.optimizers) and not self._told:
            self._told = True
            warn(
                trainer,
                f"the module made {steps} steps in a batch, which schedules, averages and lengths "
                "count as one: give lengths in batches that step",
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        clock, self.clock.epoch = self.clock, trainer.current_epoch + 1
        if not clock.horizon_used or not clock.horizon.epoch_ends or trainer.should_stop:
            return
        expected = clock.horizon.step_at(clock.epoch)
        if clock.position != min(expected, clock.horizon.total or expected):
            clock.horizon_used = False  # once is enough
            warn(
                trainer,
                f"the run was taken to make {expected:g} steps until now, but made {clock.position}: epochs "
                "of changing length, or batches that do not step, move the ends of schedules; give lengths "
                "in steps",
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for member in sorted(_members(trainer), key=lambda member: member.finish_order):
            member.finish(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._let_go(trainer)

    def _let_go(self, trainer: Trainer) -> None:
        show_idle_hooks([self, *_members(trainer)])
        self.steps.unwatch(trainer)
        if self._built is not None:
            self._built.remove()
            self._built = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._let_go(trainer)
        self.initialized.clear()  # until the run is tried again, anybody may set weights
        if isinstance(exception, Exception):  # nor an interrupt, which is nobody's fault
            add_notes(exception, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the clocks; as they were found, if training had nothing left to do."""
        return sealed(self.clock.saved() if self._restored is None else self._restored)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Not in ``load_state_dict``, which an evaluation calls too.
        if trainer.state.fn == "fit":
            # A tuner puts the run back where it was before the search, which may be the beginning.
            self._goes_on = self._goes_on or not is_tuners(trainer.ckpt_path)
            self._restored = unsealed(checkpoint, self.state_key)
            others = [m.state_key for m in _members(trainer) if m.state_key in checkpoint["callbacks"]]
            if others and self._restored is None:
                raise ValueError(
                    f"a checkpoint of {others[0]} must hold the state of {self.state_key}, but it does not: "
                    "it is damaged; resume from another checkpoint"
                )


def _members(trainer: Trainer) -> list[Member]:
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, Member)]


def _in_build_order(trainer: Trainer) -> list[Member]:
    return sorted(_members(trainer), key=lambda member: member.build_order)


def _check_names(members: list[Member]) -> None:
    seen: set[str] = set()
    for member in members:
        if member.state_key in seen:
            raise ConflictError(
                f"each technique must have a name of its own, got {member.state_key} twice: "
                "remove one, or give each a label"
            )
        seen.add(member.state_key)
