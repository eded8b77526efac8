"""Whether a process that took a trial still works on it.

On one machine the system knows: a process is told by its number and its start, within one space of process
numbers (containers have their own). Of one elsewhere only its beat is seen, a number in the storage that it
raises every few seconds; it is lost if that stands still for long, by the watch of whoever looks, for clocks
of machines differ.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

__all__ = ["BEAT_SECONDS", "Beat", "Watch", "has_ended", "this_process"]

BEAT_SECONDS = 10.0
_GONE = "ZXx"  # states of a process that has ended: not yet asked after by its parent, or dead


def this_process() -> dict[str, Any]:
    """Return what others know this process by; plain values."""
    return {"space": _space(), "pid": os.getpid(), "started": _started(os.getpid())}


def _space() -> str:
    """Return a name of the space of process numbers, or nothing where that cannot be told."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{kernel} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Return when a process of this machine started, in ticks since that did; None if it does not run."""
    try:
        # The second field, a name in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in _GONE else int(fields[19])


def _is_seen(process: Mapping[str, Any]) -> bool:
    return bool(process["space"]) and process["space"] == _space()


def has_ended(process: Mapping[str, Any]) -> bool:
    """Return whether a process (:func:`this_process`) has surely ended; of one elsewhere that is not seen."""
    return _is_seen(process) and bool(_started(process["pid"]) != process["started"])


class Beat:
    """Calls ``beat`` with 1, 2, ... from a thread for as long as the ``with`` block lasts.

    Errors are swallowed: a storage out of reach for a moment must not end a training.
    """

    def __init__(self, beat: Callable[[int], None], *, every_seconds: float = BEAT_SECONDS) -> None:
        """Take what is to be called, and how often."""
        self._beat, self._every, self._stop = beat, every_seconds, Event()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(self._every):
            count += 1
            with contextlib.suppress(Exception):
                self._beat(count)


class Watch:
    """Tells which takers of trials are lost.

    Args:
        grace_seconds: How long a beat may stand still.
    """

    def __init__(self, grace_seconds: float) -> None:
        """Begin with no beat seen."""
        self._grace = grace_seconds
        self._seen: dict[int, tuple[object, float]] = {}

    def is_lost(self, number: int, process: Mapping[str, Any] | None, beat: object) -> bool:
        """Return whether the process that works on trial ``number`` is lost.

        Args:
            number: Of the trial.
            process: What it said of itself (:func:`this_process`), if it came to that.
            beat: What it last raised its beat to.
        """
        if process is not None and _is_seen(process):
            return has_ended(process)
        now = time.monotonic()
        before, since = self._seen.get(number, (None, now))
        if before != beat or number not in self._seen:
            self._seen[number] = (beat, now)
            return False
        return now - since > self._grace
