"""How a fused model came about, in plain values."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_tricks.fusion.methods import FusionMethod
from lightning_tricks.lifecycle.stored import StoredModel
from lightning_tricks.lifecycle.written import written

__all__ = ["KEY", "described", "provenance"]

KEY = "fusion"
"""Where a checkpoint, and the metadata of safetensors, say how it came about."""


def provenance(method: FusionMethod, models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the method with its settings, and what is known of each model.

    Args:
        method: How they are fused.
        models: In their order, as :func:`described` returns it.
    """
    settings: dict[str, Any] = {}
    if dataclasses.is_dataclass(method):
        settings = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    return {
        "method": type(method).__name__,
        "settings": {name: _plain(value) for name, value in settings.items()},
        "models": [dict(model) for model in models],
        "lightning_tricks": version("lightning_tricks"),
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return written(value)


def described(model: StoredModel, *, sha256: bool = False) -> dict[str, Any]:
    """Return the name of a model and its size in bytes.

    Args:
        model: The model.
        sha256: Whether to add the SHA-256 of each of its files, in hexadecimal digits; in memory it has none.
    """
    about: dict[str, Any] = {"name": model.label, "size": model.size}
    if sha256:
        about["sha256"] = {path.name: _digest(path) for path in model.files}
    return about


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
