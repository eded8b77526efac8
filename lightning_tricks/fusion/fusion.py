"""Weight fusion: weights of several moments of a run become one set at its end, if that is no worse.

    theta = fuse(theta_1, ..., theta_n),    theta_i collected while training, oldest first

Reference: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", 2022, https://arxiv.org/abs/2203.05482; for one run's own weights Izmailov
et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018,
https://arxiv.org/abs/1803.05407.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from lightning_tricks.core import checks
from lightning_tricks.core.collect import LastEpochs, SnapshotPolicy
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.candidates import Candidates, check_method
from lightning_tricks.fusion.former import Former
from lightning_tricks.fusion.methods import FusionMethod
from lightning_tricks.fusion.run_probe import RunProbe
from lightning_tricks.fusion.source import Source
from lightning_tricks.lifecycle import files
from lightning_tricks.lifecycle.evaluation import (
    MissingMetricError,
    Objective,
    logged_by_module,
    logged_by_validation,
    objective_of,
)
from lightning_tricks.lifecycle.member import Member
from lightning_tricks.lifecycle.notice import callbacks_of, is_trial, say, warn
from lightning_tricks.lifecycle.processes import in_first
from lightning_tricks.lifecycle.snapshots import Shelf
from lightning_tricks.lifecycle.strategies import check_parts
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.lifecycle.weights import Weights

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["WeightFusion", "not_worse"]

_OTHERWISE = "keep='always' with a method and a collection that measure nothing"


def not_worse(fused: float, before: float) -> bool:
    """Return whether a score, higher is better, is at least as good; NaN is worse than any number."""
    return fused >= before or (math.isnan(before) and not math.isnan(fused))


@final
@dataclass(eq=False, repr=False, kw_only=True)
class WeightFusion(Technique):
    """Fuse weights of several moments of the run at its end, and keep the result if it is no worse.

    * **When** collects after an epoch, a number of optimizer steps or a validation; fuses at the end of
      fit, after all averaging. Does nothing in a trial run (``fast_dev_run``, ``barebones``).
    * **Changes** the module's weights at the end of fit: fused, and BatchNorm statistics estimated anew
      over the training data (without loader length: over 200 batches). If the metric is worse than that of
      what the module would else hold, nothing, to the bit. A second ``fit`` starts from the weights before
      fusion, unless the module has got others meanwhile.
    * **Logs** once, at the end: ``weight_fusion/snapshots``, ``/metric_before``, ``/metric_fused`` and
      ``/kept`` (1 or 0).
    * **Saves** names, sizes and metrics of the snapshots; after fit also the weights before fusion. The
      snapshots are files in ``snapshots``, in the folder of ModelCheckpoint (else ``checkpoints`` under
      ``default_root_dir``), and stay as long as the run or a checkpoint that is kept needs them; those that
      it was resumed from stay, as their checkpoint may be resumed from again. Delete the folder when the run
      will not be continued. Fused weights that are kept go beside it, to ``fused.ckpt``
      (``fused-v1.ckpt`` if there is one), with settings and metrics under ``weight_fusion``.
    * **Cost** one file of the weights per snapshot; under FSDP the first process collects them for it on
      its CPU, with buffers as it has them. At the end a copy of the weights in memory, a pass over the
      training data if there is BatchNorm, and two over the validation data; ``GreedySoup`` of N makes
      2 N - 1 more of each. Methods that look at data begin with a batch before training.
    * **Use** after fine-tuning, or a run at a constant or cyclic rate; **not** where the rate fell to 0, so
      that all snapshots are nearly the same.

    Args:
        method: How to fuse: ``Average()``, ``GreedySoup()``, ``TrimmedMean()`` and others. Gets the snapshots
            oldest first; the oldest is the base of methods that have one.
        collect: Which to fuse: ``LastEpochs(k)``, ``EverySteps(n, k)`` or ``BestK(k)`` by ``monitor``.
        source: ``"live"`` weights, or the ``"average"`` that averaging techniques keep. For ``BestK``, which
            of them validation sees.
        monitor: The metric that decides, logged by the module in validation, not by a callback; ``None`` for
            that of ModelCheckpoint.
        mode: ``"min"`` or ``"max"``, which way ``monitor`` is better; ``None`` as there.
        update_batchnorm: Whether to estimate BatchNorm statistics anew. It helps averages of weights that
            lie far apart, and can harm those of near ones: ``metric_fused`` tells.
        keep: ``"better"`` keeps the fused weights unless ``monitor`` is worse; ``"always"`` does not ask,
            and measures only if ``monitor`` is given or ``collect`` needs it.

    Example:
        >>> WeightFusion(collect=LastEpochs(3), monitor="val_loss", mode="min")
        WeightFusion(method=Average(weights=None), collect=LastEpochs(k=3), source='live', \
monitor='val_loss', mode='min', update_batchnorm=True, keep='better')
    """

    finish_order: ClassVar[int] = 1

    method: FusionMethod = field(default_factory=Average)
    collect: SnapshotPolicy = field(default_factory=lambda: LastEpochs(5))
    source: Literal["live", "average"] = "live"
    monitor: str | None = None
    mode: Literal["min", "max"] | None = None
    update_batchnorm: bool = True
    keep: Literal["better", "always"] = "better"
    _weights: Weights | None = field(default=None, init=False, repr=False)
    _trial: bool = field(default=False, init=False, repr=False)
    _objective: Objective | None = field(default=None, init=False, repr=False)
    _target: Objective | None = field(default=None, init=False, repr=False)
    _source: Source | None = field(default=None, init=False, repr=False)
    _shelf: Shelf | None = field(default=None, init=False, repr=False)
    _resumed: dict[str, Any] | None = field(default=None, init=False, repr=False)
    _former: Former | None = field(default=None, init=False, repr=False)
    _outcome: dict[str, float | int | str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, kind, such in (
            ("method", FusionMethod, "Average()"),
            ("collect", SnapshotPolicy, "LastEpochs(5)"),
        ):
            if not isinstance(value := getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__} such as {such}, got {value!r}")
        if not self.method.accepts(self.collect.k):
            needed = f"collect must keep {self.method.needed} snapshots for {self.method!r}"
            raise ValueError(f"{needed}, got {self.collect!r}")
        checks.one_of("source", self.source, ("live", "average"))
        checks.objective(self.monitor, self.mode)
        checks.flag("update_batchnorm", self.update_batchnorm)
        checks.one_of("keep", self.keep, ("better", "always"))

    # Before the run.

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_parts(trainer)
        self._weights = Weights(trainer, pl_module)
        self._trial = is_trial(trainer)
        self._objective = self._target = self._source = None
        if self._trial:
            return
        self._weights.check_numbers()
        check_method(self.method, self._weights)
        resolve = partial(objective_of, trainer, otherwise=_OTHERWISE)
        if self.keep == "better" or self.collect.monitored or self.monitor is not None:
            self._objective = resolve(self.monitor, self.mode)
        if self.method.objective is not None:
            monitor, mode = self.method.objective
            mode = mode or (self.mode if monitor in (None, self.monitor) else None)
            self._target = resolve(monitor or self.monitor, mode)
        self._source = Source.of(trainer, self._weights, self.source, self.collect)

    def claims(self) -> Iterable[Claim]:
        return [self.claim("final_weights", None)]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state, self._resumed = self._resumed, None
        if self._trial or self._weights is None:
            return
        RunProbe(self.method, self._weights).rehearse()
        now = {"position": self.clock.position, "epoch": self.clock.epoch}
        if self._shelf is None or state is not None:
            base, several = files.checkpoint_folder(trainer), files.keeps_several(trainer)
            first = partial(in_first, trainer)
            self._shelf = Shelf(self.collect, base, first, folder="snapshots", several=several)
            self._shelf.skip(**now)  # added on a resume, it begins with what is to come
        if state is not None:
            at = getattr(trainer, "ckpt_path", None)
            self._shelf.restore(state["shelf"], None if at is None else Path(at).parent, **now)

    # While it trains.

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._collect()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._collect()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wanted = [objective for objective in (self._objective, self._target) if objective is not None]
        if not wanted or trainer.state.fn != "fit":
            return
        logged = logged_by_module(trainer, pl_module)
        others = logged_by_validation(trainer)
        # All of them, lest the end of the run be the first to find that a metric is not logged.
        scores = [objective.score(logged, others=others) for objective in wanted]
        if self._shelf is not None and self._objective is not None and not trainer.sanity_checking:
            self._shelf.measured(scores[0])

    def _collect(self) -> None:
        """Take a snapshot if one is due; called only where no technique has swapped the weights."""
        if self._shelf is not None and self._source is not None:
            self._shelf.take(self._source.whole, position=self.clock.position, epoch=self.clock.epoch)

    # At its end.

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._shelf is None:
            return
        count = len(self._shelf.kept)
        self._outcome = {"snapshots": count, "kept": False}
        if not self.method.accepts(count):
            needed = f"{self.method!r} needs {self.method.needed}"
            got = f"{self.collect!r} collected {count} snapshots"
            warn(trainer, f"{self.state_key} left the weights as they are: {got}, but {needed}")
            return
        assert self._weights is not None
        former = Former(self._weights)
        path = None
        try:
            self._outcome = {"snapshots": count, **self._fuse(self._weights)}
            if self._outcome["kept"]:
                path = self._write(self._weights)
                self._hold(trainer, former)
        except MissingMetricError as error:
            lacks = "a validation without callbacks lacks its metric"
            warn(trainer, f"{self.state_key} left the weights as they are, since {lacks}: {error}")
        finally:
            if path is None:
                former.put_back()
        self._tell(trainer, path)

    def _fuse(self, weights: Weights) -> dict[str, float | int | str]:
        """Put the fused weights into the module; return how good they are and whether to keep them."""
        assert self._shelf is not None
        tried = Candidates(weights, self.update_batchnorm, self.metric_prefix)
        before = None if self._objective is None else tried.measure(self._objective)
        tried.fuse(self._shelf, self.method, self._target)
        if self._objective is None or before is None:
            return {"kept": True}
        fused = tried.measure(self._objective)
        return {
            "metric_before": self._objective.metric(before),
            "metric_fused": self._objective.metric(fused),
            "kept": self.keep == "always" or not_worse(fused, before),
        }

    def _write(self, weights: Weights) -> Path:
        assert self._shelf is not None
        path = files.checkpoint_folder(weights.trainer) / "fused.ckpt"
        names = [snapshot.name for snapshot in self._shelf.kept]
        by: dict[str, Any] = {} if self._objective is None else {"monitor": self._objective.monitor}
        about = {self.metric_prefix: {**self.settings(), **by, **self._outcome, "snapshots": names}}
        return files.save_weights(weights.trainer, path, lambda: weights.gather(weights.tensors()), about)

    def _hold(self, trainer: Trainer, former: Former) -> None:
        """Remember the weights from which training goes on."""
        members = (callback for callback in callbacks_of(trainer) if isinstance(callback, Member))
        former.note_replacement(member for member in members if member.finish_order < self.finish_order)
        self._former = former
        self.conductor.on_next_fit(partial(self._take_back, trainer, former))

    def _take_back(self, trainer: Trainer, former: Former) -> None:
        self._former = None
        if trainer.lightning_module is not former.weights.module:
            return
        if former.replacement_stands():
            former.put_back()
        else:
            others = "the module holds other weights than the fused ones"
            say(trainer, f"{self.state_key}: {others}, so it starts from them and not from those of before")

    def _tell(self, trainer: Trainer, path: Path | None) -> None:
        values = {f"{self.metric_prefix}/{name}": float(value) for name, value in self._outcome.items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        told = ", ".join(f"{k} {v:.4g}" if type(v) is float else f"{k} {v}" for k, v in self._outcome.items())
        say(trainer, f"{self.state_key}: {told}" + ("" if path is None else f", {path}"))

    def outcome(self) -> dict[str, float | int | str]:
        return dict(self._outcome)

    # Checkpoints.

    def saved(self) -> dict[str, Any]:
        if self._shelf is None:
            return {}
        state: dict[str, Any] = {"shelf": self._shelf.saved()}
        # With the fused weights in the module, those of before are the ones to go on from.
        if self._former is not None and self._former.replacement_stands():
            state["former"] = dict(self._former.weights.gather(self._former.live))
        return state

    def edit_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._shelf is not None:
            self._shelf.remember()

    def restore(self, state: dict[str, Any]) -> None:
        self._resumed = state or None
        if self._weights is not None and "former" in state:
            # Not when the checkpoint is read, since others who put weights back then know less of them.
            self._weights.put(self._weights.spread(lambda: state["former"]))
