"""How a fused model came about, in plain values."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_tricks.fusion.methods import FusionMethod
from lightning_tricks.lifecycle.stored import StoredModel
from lightning_tricks.lifecycle.written import written

__all__ = ["KEY", "described", "provenance"]

KEY = "fusion"
"""Where a checkpoint, and the metadata of safetensors, say how it came about."""

_PART = 1 << 20  # Bytes that are read at a time.


def provenance(
    method: FusionMethod, models: Sequence[Mapping[str, Any]], found: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the method with its settings, what is known of each model, and what the method chose.

    Args:
        method: How they are fused.
        models: In their order, as :func:`described` returns it.
        found: What the method told of its choice; left out if that is nothing.
    """
    settings: dict[str, Any] = {}
    if dataclasses.is_dataclass(method):
        settings = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    return {
        "method": type(method).__name__,
        "settings": {name: _plain(value) for name, value in settings.items()},
        "models": [dict(model) for model in models],
        "lightning_tricks": version("lightning_tricks"),
        **({"found": dict(found)} if found else {}),
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return written(value)


def described(model: StoredModel, told: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Return the name of a model and its size in bytes.

    Args:
        model: The model.
        told: If given, the SHA-256 of each file is added, in hexadecimal digits, and it is told of bytes that
            have been read; in memory there is none.
    """
    about: dict[str, Any] = {"name": model.label, "size": model.size}
    if told is not None:
        about["sha256"] = {path.name: _digest(path, told) for path in model.files}
    return about


def _digest(path: Path, told: Callable[[int], None]) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_PART))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            told(count)
    return digest.hexdigest()
