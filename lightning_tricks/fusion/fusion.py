"""Weight fusion: weights of several moments of a run become one set at its end, if that is no worse.

    theta = fuse(theta_1, ..., theta_n),    theta_i collected while training, oldest first

Reference: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", 2022, https://arxiv.org/abs/2203.05482; for one run's own weights Izmailov
et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018,
https://arxiv.org/abs/1803.05407.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from lightning_tricks.core import checks
from lightning_tricks.core.collect import LastEpochs, SnapshotPolicy
from lightning_tricks.core.duration import as_length, as_unit
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.base_file import BaseFile
from lightning_tricks.fusion.candidates import Candidates, check_method
from lightning_tricks.fusion.curve import check_points
from lightning_tricks.fusion.ending import Ending, Outcome
from lightning_tricks.fusion.former import Former
from lightning_tricks.fusion.measures import Measures
from lightning_tricks.fusion.methods import FusionMethod
from lightning_tricks.fusion.preview import Previews
from lightning_tricks.fusion.run_probe import RunProbe
from lightning_tricks.fusion.source import Source
from lightning_tricks.lifecycle.batchnorm import reestimate_batchnorm, reestimate_for_validation
from lightning_tricks.lifecycle.evaluation import MissingMetricError
from lightning_tricks.lifecycle.notice import is_trial, warn
from lightning_tricks.lifecycle.snapshots import Shelf
from lightning_tricks.lifecycle.strategies import check_parts
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.lifecycle.weights import Weights

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["WeightFusion"]


@final
@dataclass(eq=False, repr=False, kw_only=True)
class WeightFusion(Technique):
    """Fuse weights of several moments of the run at its end, and keep the result if it is no worse.

    Any method of fusion does it, with the better of two sets of BatchNorm statistics; ``every`` previews it
    while it trains, ``curve`` measures the barriers between snapshots.

    * **When** collects after an epoch, a number of optimizer steps or a validation; fuses at the end of fit,
      after all averaging. Does nothing in a trial run (``fast_dev_run``, ``barebones``).
    * **Changes** the module's weights at the end of fit: fused, with BatchNorm statistics as they are fused
      or estimated anew over the training data (without loader length: over 200 batches). If the metric is
      worse than that of what the module would else hold, nothing, to the bit. A second ``fit`` starts from
      the weights before fusion, unless the module has got others meanwhile.
    * **Logs** at the end: ``weight_fusion/snapshots``, ``/metric_before``, ``/metric_fused`` and ``/kept`` (1
      or 0); where both kinds of statistics are tried, ``/metric_as_fused``, ``/metric_reestimated`` and
      ``/reestimated`` (1 or 0, which stay); with ``curve``, ``/barrier``, and ``/curve`` as a plot in Weights
      & Biases. With ``every``, all metrics of validation as ``/val_loss`` and so on while it trains.
    * **Saves** names, sizes and metrics of the snapshots; after fit also the weights before fusion. The
      snapshots are files in ``snapshots``, in the folder of ModelCheckpoint (else ``checkpoints`` under
      ``default_root_dir``), and stay as long as the run or a checkpoint that is kept needs them; those that
      it was resumed from stay, as their checkpoint may be resumed from again. Delete the folder when the run
      will not be continued. Fused weights that are kept go beside it, to ``fused.ckpt`` (``fused-v1.ckpt`` if
      there is one), with method and models under ``fusion``, as :func:`~lightning_tricks.fuse` writes them,
      and settings, metrics and curve under ``weight_fusion``; with matplotlib a picture to ``curve.png``.
    * **Cost** one file of the weights per snapshot; under FSDP the first process collects them for it on its
      CPU, with buffers as it has them. At the end a copy of the weights in memory, a pass over the training
      data if there is BatchNorm, and two over the validation data, three with both kinds of statistics;
      ``GreedySoup`` of N makes 2 N - 1 more of each, a curve through N snapshots (N - 1) (``curve`` - 1) + 1,
      and each time of ``every`` one. The file of a base is read before the first batch, and into memory to be
      fused. Methods that look at data begin with a batch before training.
    * **Use** after fine-tuning, or at a constant or cyclic rate; **not** where it fell to 0: all are alike.

    Args:
        method: How to fuse: ``Average()``, ``GreedySoup()``, ``TrimmedMean()`` and others. Gets the snapshots
            oldest first. For methods that have a base it is the file that they name, which must hold the
            tensors of the module; else the oldest snapshot.
        collect: Which to fuse: ``LastEpochs(k)``, ``EverySteps(n, k)`` or ``BestK(k)`` by ``monitor``.
        source: ``"live"`` weights, or the ``"average"`` that averaging techniques keep. For ``BestK``, which
            of them validation sees.
        monitor: The metric that decides, logged by the module in validation, not by a callback; ``None`` for
            that of ModelCheckpoint.
        mode: ``"min"`` or ``"max"``, which way ``monitor`` is better; ``None`` as there.
        update_batchnorm: Whether to estimate BatchNorm statistics anew: ``True``, ``False``, or ``"better"``
            to measure both and keep what is better. It helps averages of weights that lie far apart, and can
            harm those of near ones. Candidates of a method, previews and curves, and what nothing is measured
            of, are then estimated anew.
        keep: ``"better"`` keeps the fused weights unless ``monitor`` is worse; ``"always"`` does not ask,
            and measures only if ``monitor`` is given or ``collect`` or ``curve`` needs it.
        every: A preview: at the first validation after each 500 (optimizer steps), ``"2 epochs"`` or
            ``"10%"`` of the run, what the snapshots so far would make is validated too. The weights that
            train stay as they are. ``None`` for none.
        curve: Points on the line from each snapshot to the next, both ends included, at which ``monitor``
            is measured at the end; ``None`` for no curve.

    Example:
        >>> WeightFusion(collect=LastEpochs(3), monitor="val_loss", mode="min", every="1 epoch")
        WeightFusion(method=Average(weights=None), collect=LastEpochs(k=3), source='live', \
monitor='val_loss', mode='min', update_batchnorm='better', keep='better', every='1 epoch', curve=None)
    """

    finish_order: ClassVar[int] = 1

    method: FusionMethod = field(default_factory=Average)
    collect: SnapshotPolicy = field(default_factory=lambda: LastEpochs(5))
    source: Literal["live", "average"] = "live"
    monitor: str | None = None
    mode: Literal["min", "max"] | None = None
    update_batchnorm: bool | Literal["better"] = "better"
    keep: Literal["better", "always"] = "better"
    every: int | str | None = None
    curve: int | None = None
    _weights: Weights | None = field(default=None, init=False, repr=False)
    _trial: bool = field(default=False, init=False, repr=False)
    _measures: Measures = field(default_factory=Measures, init=False, repr=False)
    _source: Source | None = field(default=None, init=False, repr=False)
    _base: BaseFile | None = field(default=None, init=False, repr=False)
    _shelf: Shelf | None = field(default=None, init=False, repr=False)
    _resumed: dict[str, Any] | None = field(default=None, init=False, repr=False)
    _previews: Previews | None = field(default=None, init=False, repr=False)
    _former: Former | None = field(default=None, init=False, repr=False)
    _outcome: Outcome = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        wanted = [("method", FusionMethod, "Average()"), ("collect", SnapshotPolicy, "LastEpochs(5)")]
        for name, kind, such in wanted:
            if not isinstance(value := getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__} such as {such}, got {value!r}")
        if not self._accepts(self.collect.k):
            counted = "" if self.method.base is None else ", its base counted as one,"
            needed = f"{self.method.needed} snapshots{counted} for {self.method!r}"
            raise ValueError(f"collect must keep {needed}, got {self.collect!r}")
        checks.one_of("source", self.source, ("live", "average"))
        checks.objective(self.monitor, self.mode)
        if not isinstance(self.update_batchnorm, str) or self.update_batchnorm != "better":
            checks.flag("update_batchnorm, unless 'better',", self.update_batchnorm)
        checks.one_of("keep", self.keep, ("better", "always"))
        if self.every is not None:
            as_unit("every", self.every)
        if self.curve is not None:
            check_points("curve", self.curve)
            if self.collect.k < 2:
                raise ValueError(f"collect must keep 2 snapshots or more for a curve, got {self.collect!r}")

    def _accepts(self, snapshots: int) -> bool:
        return snapshots > 0 and self.method.accepts(snapshots + (self.method.base is not None))

    def _too_few(self, snapshots: int) -> str:
        needed = f"{self.method!r} needs {self.method.needed}"
        return f"{self.collect!r} collects {snapshots} snapshots in this run, but {needed}"

    # Before the run.

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_parts(trainer)
        self._weights = Weights(trainer, pl_module)
        self._trial = is_trial(trainer)
        self._measures, self._source, self._base = Measures(), None, None
        if self._trial:
            return
        self._weights.check_numbers()
        check_method(self.method, self._weights)
        needed = self.keep == "better" or self.collect.monitored or self.curve is not None
        self._measures = Measures.of(trainer, self.method, self.monitor, self.mode, needed=needed)
        if self.every is not None and not trainer.enable_validation:
            raise ValueError(f"every must be left out of a run without validation, got {self.every!r}")
        self._source = Source.of(trainer, self._weights, self.source, self.collect)
        if self.method.base is not None:
            self._base = BaseFile(self.method.base, self._weights)
            self._base.check()

    def claims(self) -> Iterable[Claim]:
        return [self.claim("final_weights", None)]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state, self._resumed = self._resumed, None
        if self._trial or self._weights is None:
            return
        RunProbe(self.method, self._weights).rehearse()
        now = {"position": self.clock.position, "epoch": self.clock.epoch}
        if self._shelf is None or self._previews is None or state is not None:
            self._shelf = Shelf.of_run(trainer, self.collect, folder="snapshots")
            self._shelf.skip(**now)  # added on a resume, it begins with what is to come
            self._previews = Previews(self.clock, as_length("every", self.every))
        if state is not None:
            at = getattr(trainer, "ckpt_path", None)
            self._shelf.restore(state["shelf"], None if at is None else Path(at).parent, **now)
            self._previews.done = state["previews"]
        self._previews.begin()
        if (end := self.clock.end) and not self._accepts(count := self.collect.count(*end)):
            warn(trainer, f"{self.state_key} will leave the weights as they are: {self._too_few(count)}")

    # While it trains.

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._collect()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._collect()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        score = self._measures.seen(trainer, pl_module)
        if trainer.sanity_checking or self._shelf is None or self._previews is None:
            return
        if score is not None:
            self._shelf.measured(score)
        if self._previews.due and self._accepts(len(self._shelf.kept)):
            tried = self._candidates(self._shelf, partial(reestimate_for_validation, trainer, pl_module))
            self._previews.show(tried, self.metric_prefix)

    def _collect(self) -> None:
        """Take a snapshot if one is due; called only where no technique has swapped the weights."""
        if self._shelf is not None and self._source is not None:
            self._shelf.take(self._source.whole, position=self.clock.position, epoch=self.clock.epoch)

    def _candidates(self, shelf: Shelf, reestimate: Callable[[], int]) -> Candidates:
        assert self._weights is not None
        return Candidates(
            weights=self._weights,
            shelf=shelf,
            method=self.method,
            base=self._base,
            target=self._measures.target,
            reestimate=reestimate if self.update_batchnorm else None,
            name=self.metric_prefix,
        )

    # At its end.

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._shelf is None or self._weights is None:
            return
        count = len(self._shelf.kept)
        self._outcome = {"snapshots": count, "kept": False}
        if not self._accepts(count):
            warn(trainer, f"{self.state_key} left the weights as they are: {self._too_few(count)}")
            return
        ending = Ending(
            tried=self._candidates(self._shelf, partial(reestimate_batchnorm, trainer, pl_module)),
            objective=self._measures.objective,
            both=self.update_batchnorm == "better",
            always=self.keep == "always",
            points=self.curve,
        )
        former, path = Former(self._weights), None
        try:
            self._outcome = {"snapshots": count, **ending.decide()}
            if self._outcome["kept"]:
                path = ending.write({**self.settings(), **self._outcome})
                former.note_replacement(self.finish_order)
                self._former = former
                self.conductor.on_next_fit(self._take_back)
        except MissingMetricError as error:
            lacks = "a validation without callbacks lacks its metric"
            warn(trainer, f"{self.state_key} left the weights as they are, since {lacks}: {error}")
        finally:
            if path is None:
                former.put_back()
        ending.tell(self._outcome, path, self.state_key)

    def _take_back(self) -> None:
        former, self._former = self._former, None
        if former is not None:
            former.put_back_if_it_stands(self.state_key)

    def outcome(self) -> Outcome:
        return dict(self._outcome)

    # Checkpoints.

    def saved(self) -> dict[str, Any]:
        if self._shelf is None or self._previews is None:
            return {}
        state: dict[str, Any] = {"shelf": self._shelf.saved(), "previews": self._previews.done}
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
