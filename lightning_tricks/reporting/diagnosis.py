"""Training diagnosis in words: what is wrong with a run, with the evidence and what to do about it.

What finds each illness is in :mod:`lightning_tricks.reporting.symptoms`, with its limits.

Reference: Smith, "A Disciplined Approach to Neural Network Hyper-Parameters: Part 1 - Learning Rate, Batch
Size, Momentum, and Weight Decay", 2018, https://arxiv.org/abs/1803.09820.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, NamedTuple, final

from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.checks import listed
from lightning_tricks.core.chosen import chosen_parameters
from lightning_tricks.lifecycle.evaluation import logged_by_validation
from lightning_tricks.lifecycle.notice import callbacks_of, say, warn
from lightning_tricks.lifecycle.strategies import flat_shards
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.reporting.health import LayerHealth, ailments, overall
from lightning_tricks.reporting.layer_watch import LayerWatch, too_rarely
from lightning_tricks.reporting.run_history import History, Validation, Window
from lightning_tricks.reporting.symptoms import (
    LAYERS,
    VANISHING,
    clips_always,
    clips_never,
    illness,
    largest_reach,
    silence,
)

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import nn
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["Diagnosis", "Finding"]


class Finding(NamedTuple):
    """Something that is wrong with a run.

    Attributes:
        evidence: What was seen, with numbers.
        proposal: What to do; empty where another technique has said it with its evidence.
        step: Optimizer steps attempted when it was found.
    """

    evidence: str
    proposal: str
    step: int


@final
@dataclass(eq=False, repr=False, kw_only=True)
class Diagnosis(Technique):
    """Watch loss, rate, gradients and validation, and say in words what is wrong and what to do about it.

    It knows a rate that is too high (the loss diverges, or jumps about) or too low, a rate that decayed too
    early, over-fitting, a plateau, layers that no gradient reaches, or next to none, or that are dead, and
    thresholds of clipping that cut nearly always or never. What GANMixin and GradientHealth find in the same
    run is among its findings: a critic at its floor, collapsed modes, exploding gradients.

    * **When** at the first step that Lightning logs after every ``every`` steps, at validations, at the end.
    * **Changes** nothing.
    * **Logs** ``diagnosis/findings``, how many there are so far. Warns once for each.
    * **Saves** what the run was like so far, at most 256 windows of it, and what was found.
    * **Cost** two additions of numbers each batch; where it looks a copy of the weights (kept on the CPU
      until training ends), some passes over weights and gradients, and a read to the host.
    * **Use** in every run on a new problem. **not** instead of looking at curves: silence is no proof of
      health, and nothing is said of runs of fewer than five looks.

    Args:
        every: Least distance of two looks in optimizer steps, at least 1.
        monitor: Name of the validation loss, lower is better.

    Example:
        Digits, learnt a hundred times too slowly:

        >>> import lightning_tricks, torch, warnings
        >>> from lightning.pytorch import Trainer
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> diagnosis = Diagnosis(every=10)
        >>> trainer = Trainer(max_epochs=10, callbacks=[diagnosis], log_every_n_steps=1, **QUIET)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     trainer.fit(DigitsClassifier(network, lr=1e-6), DigitsData())
        >>> diagnosis.findings["rate too low"].proposal
        'raise the learning rate 10 times or more, and watch the loss'

        For LightningCLI:

        >>> print(lightning_tricks.to_yaml(diagnosis), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.Diagnosis
            init_args:
              every: 10
              monitor: val_loss
    """

    every: int = 20
    monitor: str = "val_loss"
    _watch: LayerWatch | None = field(default=None, init=False, repr=False)
    _run: History = field(default_factory=lambda: History([], []), init=False, repr=False)
    _found: dict[str, Finding] = field(default_factory=dict, init=False, repr=False)
    _suspected: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False)
    _silent: list[str] = field(default_factory=list, init=False, repr=False)
    _first: Tensor | float | None = field(default=None, init=False, repr=False)
    _sums: list[Tensor | float] = field(default_factory=lambda: [0, 0.0, 0.0], init=False, repr=False)
    _reached: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _looks: int = field(default=0, init=False, repr=False)
    _next: int = field(default=0, init=False, repr=False)
    _rate: float = field(default=0.0, init=False, repr=False)
    _peak: float = field(default=0.0, init=False, repr=False)
    _logged: list[str] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.whole("every", self.every, 1)
        checks.text("monitor", self.monitor)
        self._next = self.every - 1

    @property
    def findings(self) -> dict[str, Finding]:
        """What was found so far, by its name, in the order in which it was found."""
        return dict(self._found)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        chosen = chosen_parameters(pl_module, "*", trainer.optimizers)
        self._watch = LayerWatch(chosen, pl_module, flat_shards(trainer))

    def claims(self) -> Iterable[Claim]:
        return []

    def touched(self) -> Iterable[nn.Parameter]:
        return () if self._watch is None else self._watch.names

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.total = self.clock.horizon.total

    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert self._watch is not None
        if self.clock.position >= self._next and self.reports(trainer):
            self._watch.before_step(optimizer)
            self._rate = max(float(group["lr"]) for each in trainer.optimizers for group in each.param_groups)
            self._silent += self._watch.without_gradient(optimizer)

    def after_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, applied: bool | Tensor
    ) -> None:
        assert self._watch is not None
        self._watch.after_step(optimizer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        assert self._watch is not None
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            wide = loss.detach().double().mean()
            if self._first is None:
                self._first = wide
            count, total, squares = self._sums
            self._sums = [count + 1, total + wide, squares + wide.square()]
        measured, silent, self._silent = self._watch.end_batch(), self._silent, []
        if measured:
            self._looks += 1
            self._next = self.clock.position - 1 + self.every
            health = {name: each for _, layers in measured for name, each in layers.items()}
            self._look(trainer, health, silent)
            self.report(trainer, pl_module, findings=float(len(self._found)))

    def _look(self, trainer: Trainer, health: dict[str, LayerHealth], silent: list[str]) -> None:
        (count, total, squares), self._sums = map(float, self._sums), [0, 0.0, 0.0]
        self._peak = max(self._peak, self._rate)
        ill = ailments(health, exploding=math.inf, vanishing=VANISHING)
        still = {*ill["dead"], *ill["vanishing"]}
        if count:
            mean = total / count
            # Of a rate tell the layers that learn: others stand still at any.
            learning = [each for name, each in health.items() if name not in still] or health.values()
            window = Window(
                step=self.clock.position,
                loss=mean,
                spread=math.sqrt(max(squares / count - mean * mean, 0.0)),
                rate=self._rate / self._peak if self._peak else 1.0,
                update=median(each.update_to_weight for each in learning),
                gradient=overall(health.values())["gradient_norm"],
            )
            self._run.first = None if self._first is None else float(self._first)
            self._run.add(window)
        self._see_layers(trainer, "no gradient", silent)
        self._see_layers(trainer, "dead layer", [name for name in ill["dead"] if name not in silent])
        self._see_layers(trainer, "vanishing gradient", ill["vanishing"])
        self._conclude(trainer)
        for name, prefix, outcome in self._clipping(trainer):
            self._tell(trainer, f"{name} clips nearly always", clips_always(outcome), "raise its threshold")
            reach = largest_reach(trainer.callback_metrics, prefix)
            self._reached[name] = max(reach, self._reached.get(name, 0.0))

        self._ask_others(trainer)

    def _ask_others(self, trainer: Trainer) -> None:
        """Take what other techniques have found, and told."""
        for each in self._others(trainer):
            for kind, words in each.signs().items():
                self._found.setdefault(f"{each.state_key}, {kind}", Finding(words, "", self.clock.position))

    def _see_layers(self, trainer: Trainer, kind: str, names: list[str]) -> None:
        """Tell of layers that two looks in a row agree about: a branch may begin at zero."""
        again = [name for name in names if name in self._suspected.get(kind, ())]
        self._suspected[kind] = names
        if again:
            evidence, proposal = LAYERS[kind]
            self._tell(trainer, kind, evidence + listed(again), proposal)

    def _conclude(self, trainer: Trainer) -> None:
        if found := illness(self._run, vanishing="vanishing gradient" in self._found):
            self._tell(trainer, *found)

    def _others(self, trainer: Trainer) -> list[Technique]:
        return [each for each in callbacks_of(trainer) if isinstance(each, Technique) and each is not self]

    def _clipping(self, trainer: Trainer) -> list[tuple[str, str, dict[str, float | int | str]]]:
        """Return name, prefix of metrics and deeds of each technique that clips."""
        done = [(each.state_key, each.metric_prefix, each.outcome()) for each in self._others(trainer)]
        return [each for each in done if "clipped" in each[2]]

    def _tell(self, trainer: Trainer, kind: str, evidence: str | None, proposal: str) -> None:
        if evidence and kind not in self._found:
            self._found[kind] = Finding(evidence, proposal, self.clock.position)
            warn(trainer, f"{self.state_key}, {kind}: {evidence}; {proposal}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self._run.windows:
            return
        logged = logged_by_validation(trainer)
        if self.monitor not in logged:
            self._logged = list(logged)
            return
        before = self._run.validations[-1].step if self._run.validations else 0
        losses = [window.loss for window in self._run.windows if window.step > before]
        training = fmean(losses) if losses else self._run.windows[-1].loss
        seen = Validation(
            self.clock.position, trainer.current_epoch + 1, float(logged[self.monitor]), training
        )
        self._run.validations.append(seen)
        self._conclude(trainer)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ask_others(trainer)
        for name, _, outcome in self._clipping(trainer):
            evidence = clips_never(outcome, self._reached.get(name, 0.0))
            self._tell(trainer, f"{name} clips never", evidence, "lower its threshold, or remove it")
        if not self._looks:
            logged: int = vars(trainer)["log_every_n_steps"]
            warn(trainer, f"{self.state_key} never looked: {too_rarely(self.every, logged)}")
        elif not self._run.windows:
            say(trainer, f"{self.state_key} saw layers only, since training_step returned no loss")
        elif self._logged is not None and not self._run.validations:
            near = checks.nearest(self.monitor, self._logged, count=1)
            meant = f"did you mean {near[0]!r}?" if near else f"it logged {listed(self._logged) or 'nothing'}"
            warn(trainer, f"{self.state_key}: validation never logged {self.monitor!r}; {meant}")

    def outcome(self) -> dict[str, float | int | str]:
        return {"looks": self._looks, "findings": "; ".join(self._found) or silence(self._run)}

    def undo(self) -> None:
        self._watch = None  # its copy of the weights is memory

    def saved(self) -> dict[str, Any]:
        return {
            "run": self._run.saved(),
            "found": {kind: list(finding) for kind, finding in self._found.items()},
            "suspected": self._suspected,
            "first": None if self._first is None else float(self._first),
            "sums": [float(each) for each in self._sums],
            "reached": self._reached,
            "looks": self._looks,
            "next": self._next,
            "peak": self._peak,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._run = History.restored(state["run"])
        self._found = {kind: Finding(*finding) for kind, finding in state["found"].items()}
        self._suspected, self._sums = state["suspected"], list(state["sums"])
        self._first = state["first"]
        self._reached, self._looks = state["reached"], state["looks"]
        self._next, self._peak = state["next"], state["peak"]
