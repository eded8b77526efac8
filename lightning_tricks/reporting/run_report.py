"""What is active in a run, what it touches and owns, when it acts; and afterwards what it did and cost.

Reference: Mitchell et al., "Model Cards for Model Reporting", 2019, https://arxiv.org/abs/1810.03993, for
telling with a model how it was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from lightning_tricks.core import checks
from lightning_tricks.core.extras import extra
from lightning_tricks.lifecycle.evaluation import logged_by_validation
from lightning_tricks.lifecycle.files import free_path
from lightning_tricks.lifecycle.hook_times import HookTimes
from lightning_tricks.lifecycle.notice import callbacks_of, is_trial, say
from lightning_tricks.lifecycle.strategies import flat_shapes
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.lifecycle.wandb_media import log_image, log_table
from lightning_tricks.reporting.activity import (
    changed,
    in_words,
    mixed_in,
    order,
    plain,
    settings_of,
    sizes_of,
    touched,
)
from lightning_tricks.reporting.run_figure import RATE, Record, changes, draw_run

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["RunReport"]

_Columns = dict[str, Literal["left", "right"]]
_Rows = Sequence[tuple[str, ...]]

_START: _Columns = {
    "technique": "left",
    "settings other than the defaults": "left",
    "owns": "left",
    "touches": "left",
}
_ORDER: _Columns = {"when": "left", "who, one after another": "left"}
_END: _Columns = {
    "technique": "left",
    "did": "left",
    "ms per batch": "right",
    "share": "right",
    "s beside": "right",
}
_MOST_RATES = 6  # of parameter groups; of more only the extremes are drawn


@final
@dataclass(eq=False, repr=False, kw_only=True)
class RunReport(Technique):
    """Say which techniques are active and what they touch; at the end what each did, and what it cost.

    It also says what they own and in which order they act; to the terminal, any logger, and Weights & Biases
    as tables.

    * **When** at the start of training and at its end, also if it breaks off.
    * **Changes** nothing.
    * **Logs** at the start the settings of all techniques among each logger's hyper-parameters, as
      ``techniques``, and what each owns and touches and in which order they act, as ``run_report``; at the
      end what each did, as ``run_report/<technique>/<number>``; to Weights & Biases all tables besides, as
      ``run_report/techniques``, ``/order`` and ``/outcome``, and the figure. Prints the tables, and draws
      the figure into the folder of the first logger, as ``RunReport.png``; where another run left one there,
      as ``RunReport-v1.png`` and so on.
    * **Saves** nothing: after a resume, costs and figure are those of the rest of the run, as the title says.
    * **Cost** about 2 µs for each hook of each technique, which it measures.
    * **Use** in every run that somebody will look at again; last in the list, so that what others do at the
      end of a batch is counted; **not** to see what a technique adds to the passes of the module
      (SharpnessAware, GradientSurgery), or starts on a device without waiting: hooks alone are timed.

    Args:
        figure: Whether to draw losses, rates and what techniques logged, where a logger has a folder. If
            matplotlib is not installed, a line says so.

    Example:
        A classifier of handwritten digits, trained for a moment with two techniques:

        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from lightning_tricks import EMAWeights, GradientClip, to_yaml
        >>> from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
        >>> data, network = DigitsData(), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> report = RunReport()
        >>> trainer = Trainer(
        ...     callbacks=[GradientClip(max_norm=1.0), EMAWeights(decay=0.9), report],
        ...     max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False,
        ... )
        >>> trainer.fit(DigitsClassifier(network), data)  # doctest: +ELLIPSIS
        RunReport: ...
        >>> report.costs["GradientClip"] > 0.0  # ms per batch
        True

        For LightningCLI:

        >>> print(to_yaml(RunReport()), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.RunReport
            init_args:
              figure: true
    """

    # After all others.
    finish_order: ClassVar[int] = 2

    figure: bool = True
    _folder: Path | None = field(default=None, init=False, repr=False)
    _record: Record = field(default_factory=Record, init=False, repr=False)
    _validated: set[str] = field(default_factory=set, init=False, repr=False)
    _times: HookTimes | None = field(default=None, init=False, repr=False)
    _running: bool = field(default=False, init=False, repr=False)
    _batches: int = field(default=0, init=False, repr=False)
    _since: int = field(default=0, init=False, repr=False)
    _began: float = field(default=0.0, init=False, repr=False)
    _seconds: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.flag("figure", self.figure)

    def claims(self) -> Iterable[Claim]:
        return []

    def hand_over(self, config: dict[str, Any]) -> None:
        pass  # it needs neither gradients nor weights

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        active, mixed = self._others(trainer), mixed_in(pl_module)
        settings = {each.state_key: settings_of(each) for each in active}
        settings |= {kind.__name__: own for kind, own in mixed.items()}
        sizes = sizes_of(pl_module, flat_shapes(trainer))
        rows: list[tuple[str, ...]] = []
        names = {kind.__name__ for kind in mixed}
        for each in active:
            claims, name = list(each.claims()), each.state_key
            if name in names:
                continue  # what a mixin brings along has no settings of its own
            slots = dict.fromkeys(claim.slot for claim in claims if claim.owner == name)
            on = touched(claims, each.touched(), sizes)
            rows.append((name, changed(type(each), settings[name]), ", ".join(slots), on))
        rows += [(kind.__name__, changed(kind, own), "", "") for kind, own in mixed.items()]
        moments = order(active)
        told = {name: {"owns": slots, "touches": on} for name, _, slots, on in rows}
        for logger in trainer.loggers:
            logger.log_hyperparams({"techniques": plain(settings)})
            logger.log_hyperparams({self.metric_prefix: {"active": told, "order": dict(moments)}})
        self._show(trainer, "what is active", _START, rows)
        if moments:
            self._show(trainer, "in which order it acts", _ORDER, moments)
        self._log_table(trainer, "techniques", _START, rows)
        self._log_table(trainer, "order", _ORDER, moments)
        self._times, self._running = HookTimes(active), True
        self._folder = self._figures_folder(trainer)
        self._batches, self._seconds, self._since = 0, 0.0, self.clock.position

    def _figures_folder(self, trainer: Trainer) -> Path | None:
        folder = trainer.log_dir if self.figure and trainer.loggers else None
        if folder is None:
            return None
        try:
            with extra("plots"):
                import matplotlib.figure  # noqa: F401  # found missing now, and not when all is measured
        except ModuleNotFoundError as error:
            say(trainer, f"{self.state_key}: no figure is drawn: {error}")
            return None
        return Path(folder)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._began = perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._batches += 1
        self._seconds += perf_counter() - self._began
        if self._folder is not None and self.reports(trainer):
            self._record.add(self.clock.position, self._numbers(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._folder is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            logged = logged_by_validation(trainer)
            self._validated |= logged.keys()
            self._record.add(self.clock.position, {k: v for k, v in logged.items() if "loss" in k})

    def _numbers(self, trainer: Trainer) -> dict[str, float]:
        """Return what is drawn of a step: losses, what techniques logged, and rates."""
        begins = tuple(f"{each.metric_prefix}/" for each in self._others(trainer))
        metrics = trainer.callback_metrics.items()
        logged = {name: float(value) for name, value in metrics if name not in self._validated}
        kept = {name: value for name, value in logged.items() if "loss" in name or name.startswith(begins)}
        rates = [float(group["lr"]) for each in trainer.optimizers for group in each.param_groups]
        shown = rates if len(rates) <= _MOST_RATES else [max(rates), min(rates)]
        return kept | {f"{RATE}/{index}" if index else RATE: rate for index, rate in enumerate(shown)}

    @property
    def costs(self) -> dict[str, float]:
        """What the hooks of each technique took in the run, in milliseconds per training batch."""
        times = {} if self._times is None else self._times.batches
        return {each.state_key: 1000 * spent / max(self._batches, 1) for each, spent in times.items()}

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = self._tell(trainer, "in the whole run")
        numbers = {
            f"{self.metric_prefix}/{each.state_key}/{name}": float(value)
            for each in self._others(trainer)
            for name, value in each.outcome().items()
            if not isinstance(value, str)
        }
        if not is_trial(trainer):
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)
        self._log_table(trainer, "outcome", _END, rows)
        if self._folder is not None and trainer.is_global_zero and changes(self._record):
            path = free_path(self._folder / f"{self.state_key}.png")
            draw_run(self._record, path, title=f"{trainer.global_step:,} steps of {type(pl_module).__name__}")
            log_image(trainer, f"{self.metric_prefix}/figure", path, step=trainer.global_step)
            say(trainer, f"{self.state_key}: a figure of it is {path}")

    def undo(self) -> None:
        if self._running:
            self._tell(self.conductor.trainer, "until the run broke off")

    def _others(self, trainer: Trainer) -> list[Technique]:
        return [each for each in callbacks_of(trainer) if isinstance(each, Technique) and each is not self]

    def _tell(self, trainer: Trainer, when: str) -> _Rows:
        """Print what was done, and measure no longer."""
        assert self._times is not None
        self._times.remove()
        self._running = False
        each_batch = 1000 * self._seconds / max(self._batches, 1)
        rows: list[tuple[str, ...]] = []
        for technique, beside in self._times.beside.items():
            assert isinstance(technique, Technique)
            spent = self.costs[technique.state_key]
            share = f"{spent / each_batch:.1%}" if each_batch else ""
            rows.append(
                (technique.state_key, in_words(technique.outcome()), f"{spent:.3f}", share, f"{beside:.2f}")
            )
        # Only what techniques did before is in their checkpoints; how long it took is not.
        since = f"; since step {self._since:,}" if self._since else ""
        title = f"what was done {when}{since}, {self._batches:,} batches of {each_batch:.2f} ms"
        self._show(trainer, title, _END, rows)
        return rows

    def _show(self, trainer: Trainer, title: str, columns: _Columns, rows: _Rows) -> None:
        title = f"{self.state_key}: {title}"
        say(trainer, text_table(title, columns, rows) if rows else f"{title}: no other technique")

    def _log_table(
        self, trainer: Trainer, name: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]
    ) -> None:
        if not is_trial(trainer):
            log_table(trainer, f"{self.metric_prefix}/{name}", list(columns), rows, step=trainer.global_step)
