"""Gradient health: norms, ratios and shares of each layer's gradients, and the names of those that are ill.

The mathematics, with its sources, is that of :mod:`lightning_tricks.reporting.health`.

Reference: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
2010, https://proceedings.mlr.press/v9/glorot10a.html.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from lightning_tricks.core import checks
from lightning_tricks.core.checks import listed
from lightning_tricks.core.chosen import chosen_parameters
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.strategies import flat_shards
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.lifecycle.wandb_media import log_histograms, wandb_loggers
from lightning_tricks.reporting.health import KINDS, PER_LAYER, LayerHealth, ailments, overall
from lightning_tricks.reporting.layer_watch import LayerWatch, too_rarely

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["GradientHealth"]

_SAMPLES = 2000  # entries of a parameter in a histogram
_WORDS = {
    "exploding": "gradients explode (norm above {exploding:g}, or not finite)",
    "vanishing": "gradients vanish (root mean square below {vanishing:g} of the largest layer's)",
    "dead": "no gradient arrives (all zero, or none)",
    "symmetric": "all units are the same in weights and gradients, as after initialisation with zeros",
}


@final
@dataclass(eq=False, repr=False, kw_only=True)
class GradientHealth(Technique):
    """Measure each layer's gradients and updates, and name the layers where something is wrong.

    It tells norms, update-to-weight ratios and shares of zero and non-finite gradients, and which layers
    explode, vanish, are dead or symmetric.

    * **When** at the first step that Lightning logs after every ``every`` steps: gradients as the backward
      pass left them, unscaled and before any clipping; updates right after the step.
    * **Changes** nothing.
    * **Logs** ``gradient_health/gradient_norm``, ``/update_to_weight``, ``/zero``, ``/non_finite``, and how
      many layers are ``/exploding``, ``/vanishing``, ``/dead``, ``/symmetric``; with ``per_layer`` also
      ``/gradient_norm/LAYER``, ``/gradient_to_weight/LAYER``, ``/update_to_weight/LAYER``, ``/zero/LAYER``
      and ``/non_finite/LAYER``, and to Weights & Biases a histogram ``/gradients/LAYER`` of 2,000 entries of
      each parameter. Warns once for each layer and kind, when two measurements in a row agree: a
      branch that begins at zero has no gradient in its first step.
    * **Saves** when it measures next, and what it suspected and found.
    * **Cost** where it measures a copy of the weights (kept on the CPU until training ends), some passes over
      weights and gradients, and one read to the host; nothing on other steps.
    * **Use** on a new network, when a loss stands still or jumps; **not** to change anything: GradientClip
      does. Over shards symmetry is judged by the rows that each process holds whole, under FSDP1 never.

    Args:
        every: Least distance of two measurements in optimizer steps, at least 1.
        per_layer: Whether each layer is logged, or all together only.
        exploding: Largest norm of a layer's gradients that is in order, above 0.
        vanishing: Least root mean square of a layer's gradients that is in order, as a share of that of the
            layer where it is largest, in [0, 1).
        params: Name patterns of the parameters to look at.

    Example:
        >>> GradientHealth(every=200, per_layer=False)
        GradientHealth(every=200, per_layer=False, exploding=100.0, vanishing=1e-06, params='*')
    """

    every: int = 50
    per_layer: bool = True
    exploding: float = 100.0
    vanishing: float = 1e-6
    params: Patterns = "*"
    _watch: LayerWatch | None = field(default=None, init=False, repr=False)
    _samples: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _next: int = field(default=-1, init=False, repr=False)
    _measured: int = field(default=0, init=False, repr=False)
    _suspected: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False)
    _found: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.whole("every", self.every, 1)
        checks.flag("per_layer", self.per_layer)
        self.exploding = checks.in_range("exploding", self.exploding, 0.0, open_low=True)
        self.vanishing = checks.in_range("vanishing", self.vanishing, 0.0, 1.0, open_high=True)
        as_patterns("params", self.params)
        self._next = self.every - 1
        self._suspected, self._found = {kind: [] for kind in KINDS}, {kind: [] for kind in KINDS}

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        chosen = chosen_parameters(pl_module, self.params, trainer.optimizers)
        self._watch = LayerWatch(chosen, pl_module, flat_shards(trainer))

    def claims(self) -> Iterable[Claim]:
        return []

    def touched(self) -> Iterable[nn.Parameter]:
        return () if self._watch is None else self._watch.names

    @property
    def findings(self) -> dict[str, list[str]]:
        """The layers that were found exploding, vanishing, dead and symmetric in the run, by kind."""
        return {kind: list(names) for kind, names in self._found.items()}

    def signs(self) -> dict[str, str]:
        return {
            kind: f"{self._in_words(kind)} in {listed(names)}" for kind, names in self._found.items() if names
        }

    def _in_words(self, kind: str) -> str:
        return _WORDS[kind].format(exploding=self.exploding, vanishing=self.vanishing)

    def _looks(self, trainer: Trainer) -> bool:
        return self.clock.position >= self._next and self.reports(trainer)

    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert self._watch is not None
        if self._looks(trainer):
            self._watch.before_step(optimizer)
            if self.per_layer and wandb_loggers(trainer):
                self._samples |= self._watch.samples(optimizer, _SAMPLES)

    def after_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, applied: bool | Tensor
    ) -> None:
        assert self._watch is not None
        self._watch.after_step(optimizer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert self._watch is not None
        results, samples = self._watch.end_batch(), self._samples
        self._samples = {}
        if not results:
            return
        named = {f"{self.metric_prefix}/gradients/{name}": values for name, values in samples.items()}
        log_histograms(trainer, named, step=self.clock.position - 1)
        self._next = self.clock.position - 1 + self.every
        self._measured += 1
        suspected: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for optimizer, health in results:
            ill = ailments(health, exploding=self.exploding, vanishing=self.vanishing)
            for kind in KINDS:
                suspected[kind] += ill[kind]
            self._log(trainer, pl_module, optimizer, health, ill)
        for kind in KINDS:
            again = [name for name in suspected[kind] if name in self._suspected[kind]]
            if new := [name for name in dict.fromkeys(again) if name not in self._found[kind]]:
                self._found[kind] += new
                warn(trainer, f"{self.state_key}: {self._in_words(kind)} in {listed(new)}")
        self._suspected = suspected

    def _log(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        optimizer: Optimizer,
        health: dict[str, LayerHealth],
        ill: dict[str, list[str]],
    ) -> None:
        values = overall(health.values()) | {kind: float(len(ill[kind])) for kind in KINDS}
        if self.per_layer:
            for name, each in health.items():
                values |= {f"{measure}/{name}": getattr(each, measure) for measure in PER_LAYER}
        self.report(trainer, pl_module, optimizer, **values)

    def undo(self) -> None:
        self._watch = None  # its copy of the weights is memory

    def saved(self) -> dict[str, Any]:
        return {
            "next": self._next,
            "measured": self._measured,
            "suspected": self._suspected,
            "found": self._found,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._next, self._measured = state["next"], state["measured"]
        self._suspected, self._found = state["suspected"], state["found"]

    def outcome(self) -> dict[str, float | int | str]:
        return {"measured": self._measured, **{kind: ", ".join(self._found[kind]) for kind in KINDS}}

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._measured:
            logged: int = vars(trainer)["log_every_n_steps"]
            warn(trainer, f"{self.state_key} measured nothing: {too_rarely(self.every, logged)}")
