"""Variants that are timed in turns, so that what else the machine does meets all of them."""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.progress import track

__all__ = ["Run", "in_turns", "ratio"]

Run = Callable[[], object]


def in_turns(
    runs: Mapping[str, Run], folder: Path, rounds: int, *, warmup: bool = True
) -> dict[str, list[float]]:
    """Return the seconds of each of ``runs`` in each round, in a random order every round.

    ``folder`` is emptied before each; with ``warmup`` a first round, which fills caches, is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in track(range(-1 if warmup else 0, rounds), "time"):
        for name in random.sample(list(runs), len(runs)):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            begin = time.perf_counter()
            runs[name]()
            if turn >= 0:
                times[name].append(time.perf_counter() - begin)
    return times


def ratio(own: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Return the median over rounds of ``own`` by ``other``, with the middle half."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(own, other, strict=True)], n=4)
    return {"ratio": middle, "ratio_low": low, "ratio_high": high}
