"""``lightning-tricks recipe``: which ready list is meant, with which settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lightning_tricks.core import checks
from lightning_tricks.recipes.ready import READY
from lightning_tricks.recipes.recipe import Recipe

__all__ = ["chosen"]

_USUAL = {"stages": ["head", "body"]}  # where Python asks for names that only the user knows


def chosen(name: str, settings: Mapping[str, Any]) -> Recipe:
    """Return the ready list ``name`` with ``settings``.

    Raises:
        ValueError: If there is no such list, or it does not have a setting.

    Example:
        >>> len(chosen("transformer", {}))
        3
    """
    build = READY[checks.one_of("name", name, tuple(READY))]
    known = inspect.signature(build).parameters
    for setting, value in settings.items():
        if setting not in known:
            raise ValueError(f"--{setting} must be left out for {name}, got {value!r}")
    return build(**{**{key: value for key, value in _USUAL.items() if key in known}, **settings})
