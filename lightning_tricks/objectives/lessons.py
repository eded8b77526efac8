"""What a run does for a module that learns from teachers: checks, schedules, cached logits, numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_tricks.core.conflicts import Claim
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course
from lightning_tricks.lifecycle.notice import say, warn
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.objectives.cached_logits import CachedLogits, as_fresh
from lightning_tricks.objectives.distillation_loss import check_predictions
from lightning_tricks.objectives.hidden_features import PROJECTIONS, HiddenFeatures
from lightning_tricks.objectives.teachers import Teacher, Teachers, shared_parameter

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer


__all__ = ["first_value"]

_VARYING = ("temperature", "alpha", "feature_weight")


def first_value(teachers: Teachers, name: str) -> float:
    """Return the value of a setting that may vary at the first step of any run.

    Example:
        >>> first_value(Teachers(nn.Linear(2, 2), alpha="0.5 * linear(to=0.1)"), "alpha")
        0.5
    """
    factor, part = as_schedule(name, getattr(teachers, name)).parts()[0]
    return factor * part.first(None)


def check_apart(student: nn.Module, teachers: Teachers) -> None:
    """Accept teachers that are no part of the student.

    Raises:
        ValueError: If one is, in part or all.
    """
    for teacher in teachers.members:
        if name := shared_parameter(student, teacher.network):
            raise ValueError(
                f"a teacher must share no parameter with the student, got {name!r}: make it no attribute of "
                "the module but through Teachers"
            )


def names_of_teachers(saved: Mapping[str, Any], teachers: Teachers) -> list[str]:
    """Return under which names ``saved`` holds teachers, in lists too.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> names_of_teachers({"lr": 0.1, "big": network}, Teachers(network))
        ['big']
    """
    networks = [teacher.network for teacher in teachers.members]
    return [
        name
        for name, value in saved.items()
        for each in [value if isinstance(value, list | tuple) else [value]]
        if any(isinstance(one, Teachers | Teacher) or any(one is net for net in networks) for one in each)
    ]


def check_projections(student: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Accept projections that are trained as the student is.

    Raises:
        ValueError: If they are in no optimizer, or whole beside weights of which each process has a part.
    """
    stepped = {p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    own = dict(getattr(student, PROJECTIONS, nn.ModuleList()).named_parameters())
    for name, parameter in own.items():
        if parameter not in stepped:
            raise ValueError(
                f"an optimizer must have the projections, got none with {PROJECTIONS}.{name}: give it "
                f"self.parameters(), or self.{PROJECTIONS}.parameters() too"
            )
    shards = [isinstance(parameter, DTensor) for parameter in student.parameters()]
    if any(shards) and not all(isinstance(parameter, DTensor) for parameter in own.values()):
        raise ValueError(
            f"projections must be sharded as the other layers are, got whole ones: call "
            f"fully_shard(self.{PROJECTIONS}[i], ...) for each in configure_model"
        )


@final
@dataclass(eq=False, repr=False, kw_only=True)
class _Lessons(Technique):
    """The part of a run; the module brings it along, by ``configure_callbacks``."""

    watched: HiddenFeatures | None = field(default=None, init=False, repr=False)
    looks: bool = field(default=False, init=False, repr=False)
    called: bool = field(default=False, init=False, repr=False)
    caches: bool = field(default=False, init=False, repr=False)
    _cached: CachedLogits | None = field(default=None, init=False, repr=False)
    _now: dict[str, Course] = field(default_factory=dict, init=False, repr=False)
    _first: bool = field(default=False, init=False, repr=False)

    @property
    def state_key(self) -> str:
        return "Distillation"

    @property
    def metric_prefix(self) -> str:
        return "distillation"

    def attach(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit" or not isinstance(pl_module.teachers, Teachers):
            return
        # Here, too, because FSDP1 gives the student other parameters.
        check_apart(pl_module, pl_module.teachers)
        # They come there unasked: save_hyperparameters of a base class takes the arguments of all.
        for name in names_of_teachers(pl_module.hparams, pl_module.teachers):
            for saved in (pl_module.hparams, vars(pl_module)["_hparams_initial"]):
                saved.pop(name, None)

    def prepare(self, trainer: Trainer, pl_module: Any) -> None:
        teachers = pl_module.given_teachers()
        check_apart(pl_module, teachers)
        check_projections(pl_module, trainer.optimizers)
        self.caches = teachers.cached
        if teachers.matches_features:
            self.watched = HiddenFeatures(pl_module, teachers.members)
            self.watched.open()  # before others look at the loss of training_step

    def claims(self) -> Iterable[Claim]:
        if self.caches:
            # The first batch, which is compared, may be one that is hardly mixed, or not at all.
            yield Claim("batch", f"{self.state_key} with cached logits", None, "give Teachers cached=False")

    def begin(self, trainer: Trainer, pl_module: Any) -> None:
        teachers = pl_module.given_teachers()
        for name in _VARYING:
            self._now[name] = self.lay(trainer, name, as_schedule(name, getattr(teachers, name)))
        if teachers.cached:
            self._cached = CachedLogits.of_training(
                trainer, pl_module, ask=pl_module.ask_teachers, index=pl_module.distillation_indices
            )
            samples = len(self._cached.tables[0])
            say(trainer, f"{self.state_key}: logits of {samples} samples are cached")
        self._first, self.called = True, False

    def value(self, teachers: Teachers, name: str) -> float:
        """Return what a setting that may vary is now."""
        course = self._now.get(name)
        return first_value(teachers, name) if course is None else course(self.clock.position)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.looks = self._first or self.reports(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._first and not self.called:
            warn(
                trainer,
                f"{self.state_key}: the first batch did not call distill, without which nothing is learnt "
                "from teachers: return self.distill(logits, batch) in training_step",
            )
        self._first = self.looks = False

    def logits(self, student: Any, batch: Any) -> list[Tensor]:
        """Return each teacher's logits of a batch, from the cache if there is one.

        Raises:
            ValueError: If a teacher's are not finite, or the cache has those of other inputs.
        """
        if self._cached is None or not student.trainer.training:
            fresh: list[Tensor] = student.ask_teachers(batch)
            check_predictions(fresh, values=self.looks)
            return fresh
        found = self._cached[student.distillation_indices(batch)]
        if self._first and not all(map(as_fresh, found, student.ask_teachers(batch))):
            raise ValueError(
                "cached must be False where a sample's inputs change, got logits of the first batch that are "
                "not those of its inputs: random augmentation, or mixing"
            )
        return found

    def notes(self, trainer: Trainer) -> bool:
        """Return whether this step's numbers will be logged."""
        self.called = True
        return bool(trainer.training and self.reports(trainer))

    def undo(self) -> None:
        if self.watched is not None:
            self.watched.close()
        self.watched, self._cached, self._first, self.looks = None, None, False, False
