"""Work on a queue that other processes share, and looking at it meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

from lightning_tricks.study.queue import Claim, Queue

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["LOOK_SECONDS", "ended", "said", "tell_of_former", "watched", "work"]

LOOK_SECONDS = 0.5


def work(
    queue: Queue, keys: Collection[str], one: Callable[[Claim], None], *, deadline: float | None = None
) -> None:
    """Do the pieces of ``keys`` that nobody else does, and wait for those that others do.

    Args:
        queue: That has them.
        keys: In the order in which they are done.
        one: Does one.
        deadline: After which none is begun or waited for, by ``time.monotonic``.
    """
    while deadline is None or time.monotonic() < deadline:
        claim = queue.claim(keys)
        if claim is not None:
            one(claim)
        elif all(ended(trial) for key, trial in queue.pieces().items() if key in keys):
            return
        else:
            time.sleep(LOOK_SECONDS)  # until others are done, or lost


def tell_of_former(queue: Queue, keys: Collection[str]) -> None:
    """Print how many pieces had been done before, so that old results are not taken for new ones."""
    done = sum(ended(trial) for key, trial in queue.pieces().items() if key in keys)
    if done:
        print(f"{done} of {len(keys)} trials had ended before")


@contextmanager
def watched(look: Callable[[], None] | None) -> Iterator[None]:
    """Call ``look``, then twice a second from a thread of its own while the block lasts, and after it."""
    if look is None:
        yield
        return
    look()
    stop = Event()

    def go_on() -> None:
        while not stop.wait(LOOK_SECONDS):
            look()

    thread = Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()


def ended(trial: FrozenTrial) -> bool:
    """Return whether a piece needs no further attempt."""
    return trial.state.name in ("COMPLETE", "PRUNED") or (
        trial.state.name == "FAIL" and "error" in trial.user_attrs
    )


def said(error: Exception) -> str:
    """Return an error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
