"""The base of every technique: a keyword-only dataclass of settings on Lightning's callback hooks.

A technique overrides Lightning's hooks and the phases of
:class:`~lightning_tricks.lifecycle.member.Member`; what the base does itself is final.
"""

from __future__ import annotations

import dataclasses
import re
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, final

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy

from lightning_tricks.core import checks
from lightning_tricks.core.conflicts import Claim
from lightning_tricks.core.duration import Horizon
from lightning_tricks.core.unreached import unreached
from lightning_tricks.lifecycle.conductor import Conductor
from lightning_tricks.lifecycle.files import is_tuners
from lightning_tricks.lifecycle.member import Member
from lightning_tricks.lifecycle.notice import say, warn
from lightning_tricks.lifecycle.seal import sealed, unsealed
from lightning_tricks.lifecycle.written import written

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import LightningModule
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lightning_tricks.core.schedule import Course, Schedule
    from lightning_tricks.lifecycle.clock import Clock

__all__ = ["Technique"]


@dataclass(eq=False, repr=False, kw_only=True)
class Technique(Member):
    """Base of all techniques; not to be used itself.

    Args:
        label: Tells two techniques of one class apart: part of the name under which state is saved, and
            a prefix of the metrics.
    """

    label: str | None = None
    _conductor: Conductor | None = field(default=None, init=False, repr=False)
    _fitted: Conductor | None = field(default=None, init=False, repr=False)
    _pending: dict[str, Any] | None = field(default=None, init=False, repr=False)
    _courses: dict[str, tuple[str, Course]] = field(default_factory=dict, init=False, repr=False)
    _lengths: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)
    _begun: bool = field(default=False, init=False, repr=False)

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Refuse misspelt settings with the nearest name."""
        known = [entry.name for entry in dataclasses.fields(cls) if entry.init]
        if args:
            raise TypeError(f"{cls.__name__} takes its settings by name, got {args[0]!r}")
        for name in settings:
            if name not in known:
                close = checks.nearest(name, known, count=1)
                meant = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
                raise TypeError(f"{cls.__name__} has no setting {name!r}; {meant}")
        if (label := settings.get("label")) is not None:
            checks.text("label", label)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check the settings; called again when a new Trainer takes the technique."""

    def __repr__(self) -> str:
        """Return the call that builds an equal technique."""
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self.settings().items())})"

    @final
    def settings(self) -> dict[str, str]:
        """Return each setting's name with its value as it is written; ``label`` only if it is set."""
        held = [vars(kind).get("__dataclass_fields__", {}) for kind in type(self).__mro__]
        names = [entry.name for entry in dataclasses.fields(self) if entry.init and entry.repr]
        names.sort(key=lambda name: sum(name in each for each in held))  # its own first, ``label`` last
        return {name: written(getattr(self, name)) for name in names if name != "label" or self.label}

    @property
    def state_key(self) -> str:
        """The name under which checkpoints hold its state: the class and the label, never settings."""
        return type(self).__name__ + (f"[{self.label}]" if self.label is not None else "")

    @property
    def clock(self) -> Clock:
        """Where the run stands."""
        return self.conductor.clock

    @property
    def conductor(self) -> Conductor:
        """What all techniques of the run share.

        Raises:
            RuntimeError: If no Trainer has ever used this technique.
        """
        if self._conductor is None:
            raise RuntimeError(f"{self.state_key} must be added to Trainer(callbacks=[...]) first")
        return self._conductor

    # What a technique may define, beside Lightning's hooks and the conductor's phases.

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: tensors and plain values only."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`saved` returned; called when training starts, before ``begin``."""

    def edit_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Change a full checkpoint before it is written."""

    def read_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look at a checkpoint that was loaded, by ``fit`` or by an evaluation."""

    def attach(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Act at Lightning's ``setup``, before the module configures itself and checkpoints load."""

    def hand_over(self, config: dict[str, Any]) -> None:
        """Let DeepSpeed do the same, by editing its ``config`` before it starts.

        Raises:
            ValueError: If it does not offer that.
        """
        raise ValueError(
            f"{self.state_key} needs gradients and weights in reach, which DeepSpeed keeps to itself: use "
            "FSDP, or remove it"
        )

    def undo(self) -> None:
        """Take back whatever is swapped, hooked or patched; called at every end, also after an error."""

    def outcome(self) -> dict[str, float | int | str]:
        """Return what it did in the run, in the words of its metrics."""
        return {}

    # What the base does.

    @final
    def claim(self, slot: str, parameters: Mapping[str, Tensor | nn.Module] | None) -> Claim:
        """Return the claim that this technique owns ``slot`` for ``parameters`` (``None``: for all)."""
        ids = None if parameters is None else frozenset(map(id, parameters.values()))
        return Claim(slot, self.state_key, ids, f"remove {self.state_key}")

    @final
    def reports(self, trainer: Trainer) -> bool:
        """Return whether Lightning will log this step; what is reported on others would be thrown away."""
        return self.conductor.logs and not trainer.barebones

    @final
    def report(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        optimizer: Optimizer | None = None,
        **values: Any,
    ) -> None:
        """Log numbers under this technique's name, on the steps that Lightning will log.

        Args:
            trainer: The Trainer of the run.
            pl_module: Its module.
            optimizer: The optimizer concerned; with several, its index is appended to the names, because
                of two values under one name Lightning keeps the last.
            values: Numbers or 0-d tensors, by name.
        """
        if not self.reports(trainer):
            return
        suffix = ""
        if optimizer is not None and len(trainer.optimizers) > 1:
            suffix = f"/{trainer.optimizers.index(optimizer)}"
        named = {f"{self.metric_prefix}/{name}{suffix}": value for name, value in values.items()}
        pl_module.log_dict(named, on_step=True, on_epoch=False)

    @final
    def lay(self, trainer: Trainer, name: str, schedule: Schedule, *, total: int | None = None) -> Course:
        """Return ``schedule`` laid over the run; to be called in ``begin``.

        In a run that goes on, parts that have begun keep their length. The last one stretches to the new
        end, and a line says so. A warning names what lies past the end of the run.

        Args:
            trainer: The Trainer of the run.
            name: What the schedule drives, as the user calls it.
            schedule: The schedule.
            total: Optimizer steps of the run, if the Trainer's own length is not meant.
        """
        horizon = self.clock.horizon if schedule.varies else Horizon(None)
        horizon = horizon if total is None else dataclasses.replace(horizon, total=total)
        before = {**self._lengths, **self._laid()}.get(name, {})
        goes_on = self.clock.position > 0 and before.get("written") == repr(schedule)
        kept = [Horizon.restored(laid) for laid in before["kept"]] if goes_on else []
        course = schedule.resolve(horizon, kept=kept, name=name)
        if goes_on and before["end"] != course.end:
            say(trainer, f"{self.state_key}: {name} now ends at step {course.end}, not {before['end']}")
        for line in unreached(course):
            warn(trainer, f"{self.state_key}: of the schedule of {name}, {line}")
        self._courses[name] = (repr(schedule), course)
        return course

    def _laid(self) -> dict[str, dict[str, Any]]:
        position = self.clock.position
        return {
            name: {
                "written": written,
                "kept": [horizon.saved() for horizon in course.kept(position)],
                "end": course.end,
            }
            for name, (written, course) in self._courses.items()
        }

    @property
    def metric_prefix(self) -> str:
        """What its metrics' names begin with, such as ``gradient_clip``."""
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__)
        return (f"{self.label}/" if self.label is not None else "") + words.lower()

    @final
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(f"Trainer must be that of lightning.pytorch, got {type(trainer).__module__}'s")
        self._conductor = conductor = Conductor.of(trainer)
        if stage == "fit" and conductor is not self._fitted:
            self._forget()
            self._conductor = self._fitted = conductor
        strategy = trainer.strategy
        if stage == "fit" and isinstance(strategy, DeepSpeedStrategy) and strategy.config is not None:
            self.hand_over(strategy.config)
        if type(self).build is not Member.build:
            conductor.build_soon(trainer, pl_module)
        self.attach(trainer, pl_module, stage)

    def _forget(self) -> None:
        """Become as new: fields that are no settings belong to one Trainer's runs."""
        for entry in dataclasses.fields(self):
            if entry.default is not dataclasses.MISSING and not entry.init:
                setattr(self, entry.name, entry.default)
            elif entry.default_factory is not dataclasses.MISSING and not entry.init:
                setattr(self, entry.name, entry.default_factory())
        self.__post_init__()

    @final
    def take_state(self, trainer: Trainer) -> None:
        self._begun = True
        if self._pending is None:
            return
        entry, self._pending = self._pending, None
        now, before = self.settings(), entry["settings"]
        changed = [f"{k} {before[k]} -> {now[k]}" for k in now if before.get(k, now[k]) != now[k]]
        if changed:
            warn(trainer, f"{self.state_key} was resumed with changed settings: {', '.join(changed)}")
        self._courses, self._lengths = {}, entry["lengths"]
        self.restore(entry["state"])

    @final
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Through this hook and not through ``state_dict``: Lightning refuses two stateful callbacks of one
        # class before a clearer error can name the remedy.
        if self._begun:
            before = set(checkpoint)
            entry = {"settings": self.settings(), "state": self.saved(), "lengths": self._laid()}
            checkpoint["callbacks"][self.state_key] = entry
            self.edit_checkpoint(trainer, pl_module, checkpoint)
            beside = sorted(checkpoint.keys() - before)
            checkpoint["callbacks"][self.state_key] = sealed({**entry, "beside": beside})
        elif self._pending is not None:  # a resumed run with nothing left to do
            checkpoint["callbacks"][self.state_key] = sealed({**self._pending, "beside": []})

    @final
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        entry = unsealed(checkpoint, self.state_key)
        if entry is None and is_tuners(trainer.ckpt_path):
            return  # put back as it was before the run began
        if entry is not None and trainer.state.fn == "fit":
            self._pending = deepcopy(entry)
        self.read_checkpoint(trainer, pl_module, checkpoint)

    @final
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.undo()

    @final
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.undo()
