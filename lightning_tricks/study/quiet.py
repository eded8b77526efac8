"""Training that says nothing of itself, in a process that has its own to say."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from lightning.pytorch import Trainer

__all__ = ["no_words", "trained_quietly"]


@contextmanager
def no_words() -> Iterator[None]:
    """Keep Lightning's hints and warnings from being shown."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Of workers, intervals of logging and the like, said anew in each run.
            warnings.filterwarnings("ignore", module=r"lightning\.")
            # Lightning 2.6 compares with a class that torch 2.13 deprecates.
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated")
            yield
    finally:
        log.setLevel(level)


@contextmanager
def trained_quietly(trainer: Trainer) -> Iterator[None]:
    """Surround a ``fit``: what it prints is dropped, and Ctrl-C is a KeyboardInterrupt."""
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except SystemExit:  # what Lightning makes of Ctrl-C
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None
