"""Latest weight averaging: the mean of the last k snapshots of the weights.

    m = (theta_{n-k+1} + ... + theta_n) / k

over the snapshots at the last k multiples of ``every``, and over those there are, as long as there are fewer.
The sum is moved by one that comes and one that goes, without an error that would add up
(:mod:`~lightning_tricks.averaging.windows`).

Reference: Kaddour, "Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight
Averaging", 2022, https://arxiv.org/abs/2209.14981, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, final
from urllib.parse import quote

from lightning_tricks.averaging.snapshot_mean import SnapshotMean
from lightning_tricks.averaging.windows import ExactSum, InFiles, InMemory, Window, all_finite
from lightning_tricks.core import checks
from lightning_tricks.lifecycle.notice import is_trial, say
from lightning_tricks.lifecycle.weights import Weights

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["LAWA"]


@final
@dataclass(eq=False, repr=False, kw_only=True)
class LAWA(SnapshotMean):
    """Evaluate the mean of the last ``k`` snapshots of the weights (formula above).

    They lie in files or in memory; the mean is exact however long the run.

    * **When** at each multiple of ``every``, counted in optimizer steps from the start of the run; several
      optimizers in one batch count once. Until the first snapshot nothing happens.
    * **Changes** what the module holds: the mean in validation, the live weights again after it, also after
      an error; the mean once ``fit`` is over, and so in test and predict. The next ``fit`` of the Trainer
      takes the live weights back. BatchNorm statistics are estimated for the mean before each validation of
      it and at the end of ``fit``, unless no step was made since the last time; the live ones stay as they
      are.
    * **Logs** ``lawa/snapshots``, how many the mean is of, and ``lawa/distance``, that of the mean and the
      live weights as a share of the norm of these.
    * **Saves** both sets of weights in every checkpoint, weights-only ones included (``live_state`` and
      ``average_state`` read either), the mean with the statistics last estimated for it; its counts. On disk
      also the names and sizes of the snapshots, which are files in ``lawa``, in the folder of
      ModelCheckpoint (else ``checkpoints`` under ``default_root_dir``), and stay as long as the run or its
      latest checkpoint needs them, or any, where callbacks keep several; in memory the snapshots themselves,
      so that each full checkpoint is larger by ``k`` sets of weights. Before the first snapshot a checkpoint
      stays as it is.
    * **Cost** one copy of the weights in memory and two numbers of 64 bits for each of them. Per snapshot a
      file written and one read, by the first of several processes, which collects and sends the weights; or
      a copy. Besides some passes over the weights, and one wait for the device. In memory ``k`` copies of
      the weights, or of each process's parts. With BatchNorm a forward pass over ``batches`` batches, and
      another copy of the weights for as long, per validation of the mean.
    * **Use** to see early what a run at a high rate has learned, with ``every`` an epoch or some hundreds of
      steps; **not** at the end of a rate that fell to 0, where the weights themselves are as good, nor with
      ``PreciseBatchNorm``, but for ``update_batchnorm=False``.

    Args:
        k: How many snapshots the mean is of, at least 1; with 1 it is the last of them.
        store: ``"disk"`` for files, which ``WeightFusion`` collects in the same form; or ``"memory"``. Trial
            runs (``fast_dev_run``, ``barebones``) write none.
        max_bytes: What the ``k`` snapshots may take in the memory of a process; more is refused before the
            run, and what they take is said.
        every: As in ``SWAWeights``, like the two that follow.
        update_batchnorm: Whether to estimate BatchNorm statistics for the mean.
        batches: How many training batches to look at for that.
        params: As in ``EMAWeights``, like all that follow.
        buffers: Those but the statistics that are estimated.
        device: Where to keep the mean, and snapshots in memory.
        dtype: The type of the mean; that of snapshots is each weight's own.
        evaluate: Whether evaluations see it, and the module holds it after ``fit``.
        validate: Whether one that is kept apart is validated too.
        save: Which set stands under ``state_dict``: ``"average"`` or ``"live"``.

    Example:
        >>> LAWA(k=6, every=500, store="memory", max_bytes=10**9)
        LAWA(k=6, store='memory', max_bytes=1000000000, every=500, update_batchnorm=True, batches=200, \
params='*', buffers='copy', device=None, dtype=None, evaluate=True, validate=False, save='average')
    """

    k: int = 10
    store: Literal["disk", "memory"] = "disk"
    max_bytes: int = 4 * 2**30
    _window: Window | None = field(default=None, init=False, repr=False)
    _sums: dict[str, ExactSum] = field(default_factory=dict, init=False, repr=False)
    _weights: Weights | None = field(default=None, init=False, repr=False)
    _resumed: dict[str, Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.whole("k", self.k, 1)
        checks.one_of("store", self.store, ("disk", "memory"))
        checks.whole("max_bytes", self.max_bytes, 1)
        super().__post_init__()

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().prepare(trainer, pl_module)
        self._weights = Weights(trainer, pl_module)
        if self.store == "memory":
            averaged = (slot.tensor.nbytes for slot in self._second.slots.values() if not slot.estimated)
            size = self.k * sum(averaged)
            if size > self.max_bytes:
                raise ValueError(
                    f"max_bytes must be at least {size} for k={self.k} snapshots in memory, got "
                    f"{self.max_bytes}: raise it, lower k, choose fewer params, or write store='disk'"
                )
            each = "memory, and of each full checkpoint"
            say(trainer, f"{self.state_key}: its {self.k} snapshots take up to {size / 1e6:.4g} MB of {each}")

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._resumed = state["window"]

    def begin_average(self, trainer: Trainer) -> dict[str, Any]:
        counts = super().begin_average(trainer)
        assert self._weights is not None
        state, self._resumed, trial = self._resumed, None, is_trial(trainer)
        if self.store == "memory" or trial:
            self._window = InMemory(self.k, self.device)
        else:
            label = "" if self.label is None else f"-{quote(self.label, safe='')}"
            self._window = InFiles(self.k, self._weights, f"lawa{label}")
        self._sums = {}
        if counts and state is not None and not trial:
            if state["store"] != self.store:
                raise ValueError(
                    f"store must stay {state['store']!r} in a run that goes on from its snapshots, got "
                    f"{self.store!r}"
                )
            self._window.restore(self._weights, state, moment=self._passed)
            self._sum_anew()
        return counts

    def _sum_anew(self) -> None:
        assert self._window is not None and self._weights is not None and self._second.shadows is not None
        averaged = self._second.shadows.averaged()
        self._sums = {slot.names[0]: ExactSum(shadow) for slot, shadow in averaged}
        for snapshot in self._window.each(self._weights):
            for name, total in self._sums.items():
                total.add(snapshot[name])

    def take(self, trainer: Trainer) -> None:
        assert self._window is not None and self._weights is not None and self._second.shadows is not None
        self._second.reshard()
        pairs = list(self._second.shadows.averaged())
        for slot, shadow in pairs:
            if slot.names[0] not in self._sums:  # opened since the last, and the same until then
                self._window.join(slot.names[0], shadow.to(slot.tensor))
                total = self._sums[slot.names[0]] = ExactSum(shadow)
                for _ in range(len(self._window)):
                    total.add(shadow)
        now = {slot.names[0]: slot.tensor for slot, _ in pairs}
        gone = self._window.push(self._weights, now, moment=self._passed)
        for name, total in self._sums.items():
            total.add(now[name])
            if gone is not None:
                total.take_off(gone[name])
        if not trainer.strategy.reduce_boolean_decision(all_finite(self._sums.values()), all=True):
            self._sum_anew()  # or what is no number would stay after its snapshot has gone
        self._snapshots = len(self._window)
        for slot, shadow in pairs:
            shadow.copy_(self._sums[slot.names[0]].high / self._snapshots)

    def edit_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().edit_checkpoint(trainer, pl_module, checkpoint)
        if self._window is not None:
            self._window.remember()

    def saved(self) -> dict[str, Any]:
        state = super().saved()
        window = None
        if state["begun"] and self._window is not None and self._weights is not None:
            window = {"store": self.store, **self._window.saved(self._weights)}
        return {**state, "window": window}
