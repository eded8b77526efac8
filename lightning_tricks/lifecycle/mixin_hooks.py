"""Hooks of a mixin, which a class below it may hide without a word."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

__all__ = ["check_first", "check_hooks"]


def check_first(kind: type, mixin: type, hook: str) -> None:
    """Refuse a class in which the ``hook`` of another base would come before that of ``mixin``.

    Args:
        kind: The class, which inherits ``mixin``.
        mixin: What defines the hook.
        hook: Its name.

    Raises:
        TypeError: If it would.

    Example:
        >>> class Counts:
        ...     def on_fit_start(self): ...
        >>> class Net:
        ...     def on_fit_start(self): ...
        >>> check_first(type("Mine", (Net, Counts), {}), Counts, "on_fit_start")
        Traceback (most recent call last):
        TypeError: Mine must inherit Counts before Net
    """
    first = next(each for each in kind.__mro__ if hook in vars(each))
    if not issubclass(first, mixin):
        raise TypeError(f"{kind.__name__} must inherit {mixin.__name__} before {first.__name__}")


def check_hooks(kind: type, mixin: type, hooks: Iterable[str]) -> None:
    """Refuse a class in which hooks of ``mixin`` would not be called.

    Args:
        kind: The class, which inherits ``mixin``.
        mixin: What defines the hooks, and calls those of the classes after it.
        hooks: Their names.

    Raises:
        TypeError: If Lightning's own come first, or a class overrides one and does not call it.

    Example:
        >>> class Counts:
        ...     def on_fit_start(self): ...
        >>> class Net(Counts):
        ...     def on_fit_start(self):
        ...         print("starts")
        >>> check_hooks(Net, Counts, ["on_fit_start"])
        Traceback (most recent call last):
        TypeError: on_fit_start of Net must call super().on_fit_start(...), for Counts
    """
    before = kind.__mro__[: kind.__mro__.index(mixin)]
    for each in before:
        if each.__module__.startswith("lightning."):
            raise TypeError(f"{kind.__name__} must inherit {mixin.__name__} before {each.__name__}")
        for hook in vars(each).keys() & set(hooks):
            code = getattr(inspect.unwrap(vars(each)[hook]), "__code__", None)
            if code is not None and hook not in code.co_names:
                raise TypeError(
                    f"{hook} of {each.__name__} must call super().{hook}(...), for {mixin.__name__}"
                )
