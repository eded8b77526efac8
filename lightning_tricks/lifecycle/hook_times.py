"""How long techniques work within a run: the time that their hooks take.

It is the time of this process's own thread of Python. What a hook starts on a device without waiting for it,
and what a technique adds to the passes of the module itself, is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback

from lightning_tricks.lifecycle.member import Member

__all__ = ["HookTimes"]

_OF_BATCHES = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "before_step",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "after_step",
    "after_update",
    "on_train_batch_end",
)
_HOOKS = {*_OF_BATCHES, "finish", *(name for name in dir(Callback) if name.startswith("on_"))}


class HookTimes:
    """Counts the seconds that hooks of callbacks take, from now until :meth:`remove`.

    Attributes:
        batches: For each callback the seconds in hooks of training batches.
        beside: For each the seconds in all other hooks: of epochs, validations, checkpoints, the end.
    """

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        """Begin to count."""
        watched = list(callbacks)
        self.batches: dict[Callback, float] = dict.fromkeys(watched, 0.0)
        self.beside: dict[Callback, float] = dict.fromkeys(watched, 0.0)
        self._wrapped: list[tuple[Callback, str]] = []
        for callback in watched:
            for name in _HOOKS:
                if _defines(callback, name) and name not in vars(callback):
                    sums = self.batches if name in _OF_BATCHES else self.beside
                    vars(callback)[name] = self._counted(callback, getattr(callback, name), sums)
                    self._wrapped.append((callback, name))

    def remove(self) -> None:
        """Give all hooks back as they were."""
        for callback, name in self._wrapped:
            vars(callback).pop(name, None)
        self._wrapped = []

    def _counted(
        self, callback: Callback, hook: Callable[..., Any], sums: dict[Callback, float]
    ) -> Callable[..., Any]:
        @wraps(hook)
        def counted(*args: Any, **kwargs: Any) -> Any:
            begun = perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                sums[callback] += perf_counter() - begun

        return counted


def _defines(callback: Callback, name: str) -> bool:
    """Return whether ``callback`` does anything in hook ``name``."""
    own = getattr(type(callback), name, None)
    return own is not None and own not in (getattr(Callback, name, None), getattr(Member, name, None))
