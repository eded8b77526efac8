"""Contexts in which a Trainer must not fit."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from lightning_tricks.lifecycle.conductor import Conductor

__all__ = ["NoFit"]


@final
class NoFit(AbstractContextManager[None]):
    """Refuses a fit of the Trainer within the context, before anything is taken back for it."""

    def __init__(self, conductor: Conductor | None) -> None:
        """Refuse none if there is no ``conductor``."""
        self._conductor, self._within = conductor, False

    def __enter__(self) -> None:
        """Stand in the Trainer's way."""
        self._within = True
        self._wait()

    def __exit__(self, *_: Any) -> None:
        """Let it pass."""
        self._within = False

    def _wait(self) -> None:
        if self._conductor is not None:
            self._conductor.on_next_fit(self._refuse)  # the last to come is the first to be called

    def _refuse(self) -> None:
        if self._within:
            self._wait()  # for the next try, because each is called once
            raise RuntimeError("fit must be called outside live_weights(): leave the context first")
