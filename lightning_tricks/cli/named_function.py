"""A function of the user's own that an option names, such as ``--evaluate my_project.scores:fid``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["function_named"]


def function_named(option: str, name: str) -> Callable[..., Any]:
    """Return the function that ``name`` writes as MODULE:FUNCTION, from the working folder too.

    Raises:
        ValueError: If it is not written so, or cannot be imported.
    """
    module, _, function = name.partition(":")
    if not (module and function):
        raise ValueError(f"{option} must be written as MODULE:FUNCTION, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as ``python -m`` does, since it is the user's own
    try:
        found: Callable[..., Any] = getattr(import_module(module), function)
    except (AttributeError, ImportError) as error:
        raise ValueError(
            f"{option} must name a function that can be imported, got {name!r}: {error}"
        ) from error
    return found
