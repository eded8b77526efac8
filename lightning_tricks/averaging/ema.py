"""An exponential moving average of the weights, evaluated in the place of the live ones.

    m_t = d_t m_{t-1} + (1 - d_t) theta_t,    d_t = min(decay, (1 + t) / (10 + t))

``t`` counts real optimizer steps since averaging began, from 0; ``theta_t`` are the weights after the
step. Without ``decay_warmup``, d_t = decay. With ``every`` = n the average moves at each n-th step only,
by the product of the n decays since.

    theta_t <- m_t    at each multiple of ``switch_every``

References: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992,
https://doi.org/10.1137/0330046; Tarvainen and Valpola, "Mean teachers are better role models: Weight-averaged
consistency targets improve semi-supervised deep learning results", 2017, https://arxiv.org/abs/1703.01780; Li
et al., "Switch EMA: A Free Lunch for Better Flatness and Sharpness", 2024, https://arxiv.org/abs/2402.09240.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from lightning_tricks.averaging.averaged import AveragedWeights
from lightning_tricks.averaging.ema_decay import EMADecay, FollowingDecay, warmed_share
from lightning_tricks.averaging.ema_progress import Progress
from lightning_tricks.core import checks
from lightning_tricks.core.duration import as_duration, as_unit
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Schedule
from lightning_tricks.lifecycle.batches import samples_of
from lightning_tricks.lifecycle.notice import callbacks_of, warn

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["EMAWeights"]


@final
@dataclass(eq=False, repr=False, kw_only=True)
class EMAWeights(AveragedWeights):
    """Average the weights exponentially (equation above) and evaluate the average.

    It is also checkpointed and kept, and the live weights stay beside it. Its decay may be a half-life in
    samples, a power function or a schedule; there may be several, and live weights may jump to it.

    * **When** after each real optimizer step from ``start`` on; a step that was skipped counts for nothing,
      and several optimizers in one batch count once. The average begins with the weights that ``start``
      finds.
    * **Changes** what the module holds: the average in sanity check and validation, the live weights again
      after it, also after an error; the average once ``fit`` is over, and so in test and predict. The next
      ``fit`` of the Trainer takes the live weights back; if other weights have been put in since, it leaves
      them and averages anew, and says so. Callbacks listed before it see the live weights in
      ``on_validation_start``, and those after it in ``on_validation_end``. The training itself stays as
      it is without ``switch_every``; with it all weights but frozen ones jump, and other techniques'
      averages and snapshots see them after the jump.
    * **Logs** ``ema_weights/decay``, the product of the decays since the average last moved, and
      ``ema_weights/distance``, that of the average and the live weights as a share of the norm of these.
    * **Saves** both sets of weights in every checkpoint, weights-only ones included (``live_state`` and
      ``average_state`` read either), and its counts; a shadow that is wider than its weight also unrounded.
      Before ``start`` a checkpoint stays as it is.
    * **Cost** one copy of the weights in memory, one pass over them per update and one per step that logs; no
      wait for the device, unless ``device`` is another. A validation takes at most 16 MiB more, but with
      weights narrower than their average as much as these take.
    * **Use** for noisy training at a high or constant rate, and for the generator of a GAN; **not** without
      ``decay_warmup`` in runs of few times 1 / (1 - decay) steps, nor beside another that is evaluated.

    Args:
        decay: In [0, 1], a number, a schedule or its text; or a policy: ``HalfLife("2000 samples")``,
            ``PowerDecay(6.94)``, ``InverseDecay(0.75)``. With 0 the average is the live weights.
        decay_warmup: Whether early decays are smaller, so that the first weights are soon forgotten. The
            last two policies do that by themselves, and take no other.
        every: Move the average each so many real steps, at least 1, with the decay corrected for it.
        switch_every: Let the live weights jump to the average at each multiple of this, counted from the
            start of the run: optimizer steps, ``"1 epoch"`` or ``"10%"``; ``None`` for never. What
            optimizers remember stays.
        start: When averaging begins: optimizer steps, ``"3 epochs"`` or ``"5%"`` of the run. Until then the
            live weights are evaluated and kept.
        params: Name patterns of the parameters to average. Parameters that are not floating, or frozen, are
            left alone; one that is opened later joins then.
        buffers: ``"copy"`` keeps the live ones; ``"average"`` averages those that ``params`` matches too,
            except integers, booleans and masks that hold infinities.
        device: Where to keep the average, such as ``"cpu"``; ``None`` for beside the weights.
        dtype: ``"float32"`` or ``"float64"`` (an average in 16 bits stands still); ``None`` for each weight's
            own type, but at least 32 bits.
        evaluate: Whether it is the average that evaluations see, that the module holds after ``fit`` and that
            stands under ``state_dict``. With ``False`` it is kept apart, beside another that is, each with a
            ``label`` of its own: saved in full checkpoints only, read by ``average_state(path, label=...)``
            and :meth:`average`, and begun anew by the next ``fit`` of the Trainer.
        validate: Whether one that is kept apart is validated too: each validation within ``fit`` runs once
            more on it, unseen by other callbacks, and logs ``val_loss`` as ``LABEL/ema_weights/val_loss``.
        save: Which set stands under ``state_dict``, where everybody looks: ``"average"`` or ``"live"``.

    Example:
        >>> EMAWeights(decay=0.9999, start="2 epochs", params="generator.*")
        EMAWeights(decay=0.9999, decay_warmup=True, every=1, switch_every=None, start='2 epochs', \
params='generator.*', buffers='copy', device=None, dtype=None, evaluate=True, validate=False, save='average')
    """

    decay: float | str | Schedule | EMADecay = 0.999
    decay_warmup: bool = True
    every: int = 1
    switch_every: int | str | None = None
    start: int | str = 0
    _progress: Progress = field(default_factory=Progress, init=False, repr=False)
    _policy: EMADecay | None = field(default=None, init=False, repr=False)
    _batch: int = field(default=0, init=False, repr=False)
    _decay: float | Tensor | None = field(default=None, init=False, repr=False)
    _followed: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.decay, EMADecay):
            as_schedule("decay", self.decay, 0.0, 1.0)
        checks.flag("decay_warmup", self.decay_warmup)
        checks.whole("every", self.every, 1)
        if self.switch_every is not None:
            as_unit("switch_every", self.switch_every)
        as_duration("start", self.start)
        super().__post_init__()

    def claims(self) -> Iterable[Claim]:
        jumps = [] if self.switch_every is None else [self.claim("weights", self._held())]
        return [*super().claims(), *jumps]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(self.decay, EMADecay):
            self._policy = self.decay
        else:
            self._policy = FollowingDecay(self.lay(trainer, "decay", as_schedule("decay", self.decay)))
        # Each asks for the lengths of the run that it needs.
        self._policy.share(0, samples=1, clock=self.clock)
        self._switches_due()
        following = callbacks_of(trainer)[callbacks_of(trainer).index(self) + 1 :]
        self._followed = bool(following) and isinstance(following[0], EMAWeights)
        self._second.tell(trainer, self.state_key)
        if late := self.clock.too_late(as_duration("start", self.start)):
            warn(trainer, f"{self.state_key}: {late}")
        self._begin_if_due(trainer)

    def _begin_if_due(self, trainer: Trainer) -> None:
        """Begin to average at ``start``, or at once if a checkpoint holds an average."""
        if self._second.shadows is None and (
            self._second.values is not None or self.clock.reached(as_duration("start", self.start))
        ):
            self.begin_average(trainer)

    def begin_average(self, trainer: Trainer) -> dict[str, Any]:
        counts = super().begin_average(trainer)
        if "switches" not in counts:
            counts = {**counts, "switches": self._switches_due()}
        self._progress, self._decay = Progress(**counts), None
        return counts

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self._policy is not None
        self._batch = samples_of(trainer, batch) if self._policy.in_samples else 0

    def after_update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here if it changes the live weights, which others look at later; else after those that do.
        if self.switch_every is not None and self._second.shadows is not None:
            self._average(self.clock.applied)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._second.shadows is None:
            self._begin_if_due(trainer)
        elif self.clock.applied is not False:
            if self.switch_every is None:
                self._average(self.clock.applied, wait=self._followed and not self.reports(trainer))
            if self.reports(trainer):
                if self._decay is not None:
                    self.report(trainer, pl_module, decay=self._decay)
                self.report(trainer, pl_module, distance=self._second.distance())
        if not self._followed:
            self._second.make_moves_()
        self._progress.samples = 0 if self.clock.attempted else self._progress.samples + self._batch

    def _average(self, applied: bool | Tensor, *, wait: bool = False) -> None:
        assert self._policy is not None
        now = self._progress
        share = self._policy.share(now.updates, samples=now.samples + self._batch, clock=self.clock)
        if self.decay_warmup and not self._policy.warms_up:
            share = warmed_share(share, now.updates)
        now.count(share, applied)
        before, now.switches = now.switches, self._switches_due()
        if now.seen % self.every == 0 or now.switches > before:
            self._decay = 1.0 - now.share
            self._second.lerp_(now.take(), wait=wait)
        if now.switches > before:
            self._second.switch_()

    def _switches_due(self) -> int:
        every = self.switch_every
        return 0 if every is None else self.clock.passed(as_unit("switch_every", every))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_if_due(trainer)  # where it is an epoch's end

    def counts(self) -> dict[str, Any]:
        return vars(self._progress).copy()

    def foreign_counts(self, moves: int) -> dict[str, Any]:
        return {"updates": moves * self.every, "seen": moves * self.every}

    def outcome(self) -> dict[str, float | int | str]:
        last = {} if self._decay is None else {"decay": float(self._decay)}
        return {"updates": int(self._progress.updates), **last}
