"""A seal on what a checkpoint holds of a technique, so that damage is found before anything is taken from it.

For each key it is the CRC-32 of what stands there: keys and plain values, and of tensors type and shape, but
not their entries, which may be as many as those of the model. It finds accidents; against forgery it is no
help.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["sealed", "unsealed"]

_PLAIN = (bool, bytes, complex, float, int, str, type(None))


def sealed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``entry``, nested dicts and lists of tensors and plain values, with a seal on it.

    Example:
        >>> sealed({"lengths": {}, "state": {"steps": 3}})
        {'lengths': {}, 'state': {'steps': 3}, 'seal': {'lengths': '4f5e993a', 'state/steps': '4b434cf6'}}
    """
    return {**entry, "seal": _seal(entry)}


def unsealed(checkpoint: Mapping[str, Any], who: str) -> dict[str, Any] | None:
    """Return the entry of ``who`` under ``"callbacks"``, as it was :func:`sealed`; ``None`` if there is none.

    Raises:
        ValueError: If it is another, or the checkpoint lacks what the entry names as ``"beside"``; names the
            keys.
    """
    if who not in checkpoint["callbacks"]:
        return None
    found = checkpoint["callbacks"][who]
    rule = f"the checkpoint's state of {who} must be as it was saved, but it is damaged"
    seal = found.get("seal") if isinstance(found, dict) else None
    if not isinstance(seal, dict):
        raise ValueError(f"{rule}: it has no seal, got {found!r:.80}; resume from another checkpoint")
    entry = {key: value for key, value in found.items() if key != "seal"}
    now = _seal(entry)
    differing = {str(key) for key in now.keys() | seal.keys() if now.get(key) != seal.get(key)}
    differing = differing or {key for key in entry.get("beside", ()) if key not in checkpoint}
    if differing:
        raise ValueError(
            f"{rule} under {', '.join(map(repr, sorted(differing)))}; resume from another checkpoint"
        )
    return entry


def _seal(entry: Mapping[str, Any]) -> dict[str, str]:
    parts: dict[str, Any] = {}
    for key, value in entry.items():
        inner = value if isinstance(value, dict) else {}
        parts |= {f"{key}/{name}": part for name, part in inner.items()} or {str(key): value}
    # With the key, which a file may hold once for both, so that damage to it would change both alike.
    return {key: f"{zlib.crc32(f'{key}: {_written(value)}'.encode()):08x}" for key, value in parts.items()}


def _written(value: Any) -> str:
    match value:
        case dict():
            # In any order, as dicts are equal in any.
            return f"{{{', '.join(sorted(f'{key!r}: {_written(inner)}' for key, inner in value.items()))}}}"
        case list() | tuple():
            return f"{type(value).__name__}[{', '.join(map(_written, value))}]"
        case Tensor():
            return f"{value.dtype}{list(value.shape)}"
        case _:
            return repr(value) if isinstance(value, _PLAIN) else type(value).__name__
