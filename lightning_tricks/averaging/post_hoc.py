"""Averages of the weights of any length, chosen once the run is over: what has to be kept meanwhile.

    m_t = (1 - n / t) ** (gamma + 1) m_{t-n} + (1 - (1 - n / t) ** (gamma + 1)) theta_t    for each gamma

``t`` counts real optimizer steps since averaging began, from 1; ``n`` are the steps since the average last
moved. A weighted sum of them all, at several moments, is the average of another length
(:mod:`~lightning_tricks.averaging.power_profile`).

Reference: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2024,
https://arxiv.org/abs/2312.02696, section 3.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from torch import Tensor

from lightning_tricks.averaging.ema_decay import power_share
from lightning_tricks.averaging.trajectory import FOLDER, Moment, as_stored, write_index
from lightning_tricks.core import checks
from lightning_tricks.core.collect import EverySteps
from lightning_tricks.core.duration import as_unit
from lightning_tricks.core.select import Patterns, as_patterns, clean_name
from lightning_tricks.core.tensors import Model
from lightning_tricks.lifecycle.horizon import run_horizon
from lightning_tricks.lifecycle.notice import is_trial, say, warn
from lightning_tricks.lifecycle.processes import in_first
from lightning_tricks.lifecycle.second_set import SecondSet
from lightning_tricks.lifecycle.snapshots import Shelf
from lightning_tricks.lifecycle.storage import as_device, require_device
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.lifecycle.weights import Weights

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["PostHocEMA"]

_UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}


def _written(size: int) -> str:
    unit = next((unit for unit in ("GB", "MB", "kB") if size >= _UNITS[unit]), "kB")
    return f"{size / _UNITS[unit]:.3g} {unit}"


@dataclass
class _Progress:
    """Counts of the averages.

    Attributes:
        updates: Real steps since they began; a tensor if only the device knows.
        seen: The same, with the steps counted of which only the device knows.
        moved: ``updates`` as it was when they last moved.
        due: How many moments for a snapshot have come.
        stored: ``updates`` of the last snapshot.
    """

    updates: int | Tensor = 0
    seen: int = 0
    moved: int | Tensor = 0
    due: int = 0
    stored: int = 0


@final
@dataclass(eq=False, repr=False, kw_only=True)
class PostHocEMA(Technique):
    """Keep what gives an exponential average of any length after the run (equation above).

    :func:`~lightning_tricks.synthesize_ema` puts the average together,
    :func:`~lightning_tricks.evaluate_lengths` finds the best length, and ``lightning-tricks ema`` does both.

    * **When** after each real optimizer step; a step that was skipped counts for nothing, and several
      optimizers in one batch count once. A snapshot each ``snapshot_every``, and at the end of fit; none in
      a trial run (``fast_dev_run``, ``barebones``).
    * **Changes** nothing: evaluations, checkpoints' ``state_dict`` and the module have the live weights.
    * **Logs** ``post_hoc_ema/snapshots``, how many there are.
    * **Saves** the averages and their counts in full checkpoints, with the names of the snapshots. These are
      files in ``post_hoc_ema`` (with a label, ``post_hoc_ema-LABEL``), in the folder of ModelCheckpoint (else
      ``checkpoints`` under ``default_root_dir``), and none is ever deleted. Its ``index.json`` names those of
      the run as it went on last. The next ``fit`` of the Trainer begins anew, in another folder.
    * **Cost** a copy of the weights in memory and a pass over them per gamma; so many copies on disk per
      snapshot, with what is not averaged: a line at the start says how much. Under FSDP the first process
      collects them on its CPU for it.
    * **Use** to find out how long an average should be, which no run has to be repeated for; **not** for
      weights that are evaluated while training.

    Args:
        gammas: Powers of the averages, at least 0, no two within 5 %; those of the paper have relative widths
            (standard deviation over length of the run) of 0.05 and 0.10, from which 0.03 to 0.25 can be had.
        every: Move the averages each so many real steps, at least 1, by shares corrected for it; what they
            span stays the same.
        snapshot_every: Optimizer steps, ``"1 epoch"`` or ``"5%"`` of the run. With 20 snapshots the averages
            of the paper give lengths between them to 0.3 % of the profile; with 8, to 1.3 %.
        params: Name patterns of the parameters to average. What they leave out, frozen parameters and buffers
            are taken from the last snapshot.
        device: Where to keep the averages, such as ``"cpu"``; ``None`` for beside the weights.
        file_dtype: Of averages in files: ``"float16"`` needs half the space, and what it cannot hold stays as
            it is. ``"float32"`` for that of the averages: each weight's own type, but at least 32 bits.

    Example:
        >>> PostHocEMA(snapshot_every="1 epoch", params="generator.*")
        PostHocEMA(gammas=(16.97, 6.94), every=1, snapshot_every='1 epoch', params='generator.*', \
device=None, file_dtype='float32')
    """

    # Before others put averages into the module.
    finish_order: ClassVar[int] = -1

    gammas: tuple[float, ...] = (16.97, 6.94)
    every: int = 1
    snapshot_every: int | str = "5%"
    params: Patterns = "*"
    device: str | None = None
    file_dtype: Literal["float32", "float16"] = "float32"
    _seconds: list[SecondSet] = field(default_factory=list, init=False, repr=False)
    _progress: _Progress = field(default_factory=_Progress, init=False, repr=False)
    _state: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _weights: Weights | None = field(default=None, init=False, repr=False)
    _shelf: Shelf | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.gammas, tuple | list):
            raise TypeError(f"gammas must be a list of numbers, got {self.gammas!r}")
        gammas = tuple(checks.in_range("gammas", each, 0.0, open_high=True) for each in self.gammas)
        apart = all(b - a >= 0.05 * b for a, b in pairwise(sorted(gammas)))
        if not gammas or not apart:
            raise ValueError(f"gammas must be at least one, no two within 5 %, got {self.gammas!r}")
        self.gammas = gammas
        checks.whole("every", self.every, 1)
        as_unit("snapshot_every", self.snapshot_every)
        as_patterns("params", self.params)
        self.device = as_device("device", self.device)
        checks.one_of("file_dtype", self.file_dtype, ("float32", "float16"))
        if self.label is not None and Path(self.label).name != self.label:
            raise ValueError(f"label must be a part of a folder's name, got {self.label!r}")
        self._seconds = [SecondSet(aside=True) for _ in self.gammas]

    # Before the run.

    def read_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for second in self._seconds:
            if second.read(trainer, pl_module, checkpoint):
                second.values, self._state = None, {}  # what else averages is another's

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_device("device", self.device)
        for second in self._seconds:
            second.prepare(trainer, pl_module, self.conductor, params=self.params, buffers=False, save="live")
        self._weights = Weights(trainer, pl_module)

    def claims(self) -> Iterable[Claim]:
        return []

    def touched(self) -> Iterable[Tensor]:
        return [slot.held for slot in self._seconds[0].slots.values()]

    def restore(self, state: dict[str, Any]) -> None:
        if tuple(state["gammas"]) != self.gammas:
            raise ValueError(
                f"gammas must stay {tuple(state['gammas'])} in a run that goes on so, got {self.gammas}"
            )
        self._state = state
        for second in self._seconds:
            second.values = {}

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state, self._state = self._state, {}
        due = self.clock.passed(as_unit("snapshot_every", self.snapshot_every))
        if self._seconds[0].shadows is None:
            self._progress = _Progress(**{**state.get("progress", {}), "due": due})
            averages = state["averages"] if state else [None] * len(self.gammas)
            for second, wide in zip(self._seconds, averages, strict=True):
                second.begin(trainer, self.state_key, device=self.device, wide=wide, known=bool(state))
            self._shelf = None
        if is_trial(trainer):
            return
        if self._shelf is None:
            self._shelf = self._new_shelf(trainer)
            if state.get("shelf"):
                at = getattr(trainer, "ckpt_path", None)
                beside = None if at is None else Path(at).parent
                self._shelf.restore(
                    state["shelf"], beside, position=self.clock.position, epoch=self.clock.epoch
                )
                # What a run that was broken off has written since is left out.
                self._write_index(trainer)
        say(trainer, f"{self.state_key}: {self._bound(trainer)} in {self._shelf.folder}")
        if late := self.clock.too_late(as_unit("snapshot_every", self.snapshot_every)):
            warn(trainer, f"{self.state_key}: {late}")

    def _new_shelf(self, trainer: Trainer) -> Shelf:
        folder = FOLDER if self.label is None else f"{FOLDER}-{self.label}"
        everything = EverySteps(1, k=sys.maxsize)
        return Shelf.of_run(trainer, everything, folder=folder)

    def _bound(self, trainer: Trainer) -> str:
        """Return how much is written at most."""
        assert self._weights is not None
        wide = {name: value.element_size() for name, value in self._weights.tensors().items()}
        size = 0
        averaged = {name for slot in self._seconds[0].slots.values() if slot.moves for name in slot.names}
        for name, whole in self._weights.wholes().items():
            each = 2 if self.file_dtype == "float16" else max(4, wide[name])
            size += whole.numel() * (each * len(self.gammas) if clean_name(name) in averaged else wide[name])
        horizon, unit = run_horizon(trainer, self.clock), as_unit("snapshot_every", self.snapshot_every)
        if horizon.total is None:
            return f"a snapshot of {_written(size)} each {unit}"
        # One more at the end, where that is no moment of its own.
        count = math.ceil(horizon.elapsed(0, horizon.total, unit) - 1e-9)
        return f"snapshots of {_written(size)}, at most {count}, together {_written(count * size)},"

    # While it trains.

    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        for second in self._seconds:
            second.join_opened()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        now = self._progress
        if self.clock.applied is not False:
            now.updates = now.updates + self.clock.applied
            now.seen += 1
            if now.seen % self.every == 0:
                self._move()
        before, now.due = now.due, self.clock.passed(as_unit("snapshot_every", self.snapshot_every))
        if now.due > before:
            self._store(trainer)
        if self._shelf is not None and self.reports(trainer):
            self.report(trainer, pl_module, snapshots=float(len(self._shelf.kept)))

    def _move(self) -> None:
        now = self._progress
        for gamma, second in zip(self.gammas, self._seconds, strict=True):
            second.lerp_(power_share(now.moved, gamma=gamma, steps=now.updates - now.moved), wait=True)
        self._seconds[0].make_moves_()
        now.moved = now.updates

    def _store(self, trainer: Trainer) -> None:
        """Take a snapshot, unless no weight has moved since the last."""
        if self._shelf is None or not self._seconds[0].shadows:
            return
        now = self._progress
        if int(now.updates) > now.stored:
            self._move()
            now.stored = int(now.updates)
            self._shelf.add(self._model)
            self._write_index(trainer)

    def _model(self) -> Model:
        assert self._weights is not None
        live = self._weights.tensors()
        dtype = torch.float16 if self.file_dtype == "float16" else None
        averages = []
        for second in self._seconds:
            assert second.shadows is not None
            named = second.shadows.named()
            parts = {name: named[clean_name(name)] for name in live if clean_name(name) in named}
            averages.append(as_stored(self._weights.gather(parts), dtype))
        others = {name: value for name, value in live.items() if clean_name(name) not in named}
        whole = self._weights.gather(others)
        return Moment("", self.gammas, self._progress.stored, self.every, averages, whole).as_tensors()

    def _write_index(self, trainer: Trainer) -> None:
        assert self._shelf is not None
        names = [snapshot.name for snapshot in self._shelf.kept]
        in_first(trainer, partial(write_index, self._shelf.folder, names))

    # At its end.

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._store(trainer)
        for second in self._seconds:
            second.finish(trainer, self.state_key)

    def saved(self) -> dict[str, Any]:
        return {
            "gammas": list(self.gammas),
            "progress": vars(self._progress).copy(),
            "averages": [second.beyond() for second in self._seconds],
            "shelf": None if self._shelf is None else self._shelf.saved(),
        }

    def outcome(self) -> dict[str, float | int | str]:
        return {"snapshots": 0 if self._shelf is None else len(self._shelf.kept)}
