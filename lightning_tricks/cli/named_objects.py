"""What is the user's own and an option names, such as ``--evaluate my_project.scores:fid``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["classes_named", "function_named"]


def function_named(option: str, name: str) -> Callable[..., Any]:
    """Return the function that ``name`` writes as MODULE:FUNCTION, from the working folder too.

    Raises:
        ValueError: If it is not written so, or cannot be imported.
    """
    found: Callable[..., Any] = _named(option, name, "function")
    return found


def classes_named(model: str | None, data: str | None) -> dict[str, Any]:
    """Return the classes that ``--model`` and ``--data`` write as MODULE:CLASS, or ``None``, by these words.

    Raises:
        ValueError: If one is not written so, or cannot be imported.
    """
    named = {"model": model, "data": data}
    return {key: None if name is None else _named(f"--{key}", name, "class") for key, name in named.items()}


def _named(option: str, name: str, kind: str) -> Any:
    module, _, inner = name.partition(":")
    if not (module and inner):
        raise ValueError(f"{option} must be written as MODULE:{kind.upper()}, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as ``python -m`` does, since it is the user's own
    try:
        return getattr(import_module(module), inner)
    except (AttributeError, ImportError, SystemExit) as error:
        ran = f"to import {module} runs a command: guard that by if __name__ == '__main__'"
        why = ran if isinstance(error, SystemExit) else error
        raise ValueError(f"{option} must name a {kind} that can be imported, got {name!r}: {why}") from error
