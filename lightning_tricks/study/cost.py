"""What a step costs in time, and a training in memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["Cost"]

_MEBIBYTE = 1024 * 1024


class Cost(Callback):
    """Measures one training; the first callback, so that a step holds all that the others do.

    A step lasts from the start of a training batch to that of the next, what waits for data included,
    validation and the ends of epochs left out; on a GPU, by the GPU's own clock, so that nothing is waited
    for. Memory is the peak while training ran, of which on a GPU the tensors count, and on a CPU what the
    process had beyond what it had before, which only Linux tells.
    """

    def __init__(self) -> None:
        """Begin with nothing measured."""
        self._seconds: list[float] = []
        self._marks: list[Any] = []
        self._device = torch.device("cpu")
        self._before: int | None = None
        self._peak: int | None = None

    @property
    def step_ms(self) -> float:
        """The median over steps, in milliseconds; NaN without two steps in a row."""
        return 1000 * statistics.median(self._seconds) if self._seconds else math.nan

    @property
    def memory_mib(self) -> float:
        """The peak, in MiB; NaN where it cannot be told."""
        return math.nan if self._peak is None else (self._peak - (self._before or 0)) / _MEBIBYTE

    @property
    def device(self) -> str:
        """What was trained on."""
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else self._device.type

    def begin(self, device: torch.device) -> None:
        """Begin to watch memory; before the module is on its device."""
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self._before = _forget_peak()

    def end(self) -> None:
        """Take the peak."""
        if self._device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self._device)
        elif self._before is not None:
            self._peak = _of_process("VmHWM")

    def on_train_batch_start(self, *_: Any) -> None:
        if self._device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # as torch has it
            mark.record()
            self._marks.append(mark)
        else:
            self._marks.append(time.perf_counter())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count()

    def _count(self) -> None:
        """Add the times between the marks, and begin anew."""
        marks, self._marks = self._marks, []
        pairs = list(pairwise(marks))
        if self._device.type == "cuda" and marks:
            marks[-1].synchronize()
            self._seconds += [first.elapsed_time(second) / 1000 for first, second in pairs]
        else:
            self._seconds += [second - first for first, second in pairs]


def _forget_peak() -> int | None:
    """Let the process's peak begin at what it has now, and return that in bytes; None where that fails."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc's: what others freed is given back, lest it hide growth
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _of_process("VmRSS")
    except OSError:
        return None


def _of_process(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith(f"{entry}:")]
    return 1024 * int(found.split()[1])
