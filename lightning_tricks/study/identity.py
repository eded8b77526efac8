"""What a study trains, as plain values that tell whether a later call trains the same."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import textwrap
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from lightning_tricks.study.trial import Build, Setup

__all__ = ["identity"]


def identity(build: Build, setup: Setup) -> dict[str, Any]:
    """Return the settings of what ``build`` gave as ``setup``, and checksums of layers and code.

    Code is that of the function and of the classes of module and data, where its source is at hand, without
    comments; what these call is not followed.
    """
    parts = [each for each in (setup.module, setup.data) if not isinstance(each, tuple)]
    kinds = (_named(build), *map(type, parts))
    code = {getattr(each, "__name__", "build"): text for each in kinds if (text := _code(each))}
    return {
        "trainer": setup.trainer,
        "model": dict(setup.module.hparams),
        "data": dict(setup.data.hparams) if isinstance(setup.data, LightningDataModule) else {},
        "what is trained": {  # in the order of names the last, so that settings are told first
            "layers": _checksum(_layers(setup.module)),
            **{f"code of {name}": _checksum(text) for name, text in code.items()},
        },
    }


def _layers(module: LightningModule) -> str:
    """Return its layers and the shapes of all tensors; without addresses, which change."""
    shapes = [f"{name} {[*value.shape]} {value.dtype}" for name, value in module.state_dict().items()]
    return re.sub(r" at 0x[0-9a-f]+", "", "\n".join([repr(module), *shapes]))


def _named(build: Any) -> Any:
    return _named(build.func) if isinstance(build, partial) else build


def _code(thing: Any) -> str:
    """Return its source without comments; nothing if it is not at hand."""
    try:
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(thing))))
    except (OSError, SyntaxError, TypeError):  # typed into a console, or a part of a line
        return ""


def _checksum(text: str) -> str:
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]}"
