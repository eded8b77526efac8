"""mergekit, which runs in an environment of its own: its Python is that which ``MERGEKIT_PYTHON`` names.

https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md, by ``mergekit-pytorch``.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.cases import StoppedError, of_traceback

__all__ = ["merged", "saved"]

Model = dict[str, Tensor]


def saved(models: Sequence[Model], suffix: str = ".safetensors") -> list[Path]:
    """Return files of ``models``: of safetensors, or as Lightning writes checkpoints."""
    from safetensors.torch import save_file

    paths = [Path(f"model{index}{suffix}").absolute() for index in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        if suffix == ".ckpt":
            torch.save({"state_dict": model}, path)
        else:
            save_file(model, path)
    return paths


def merged(paths: Sequence[Path], method: str, *, based: bool = False, **parameters: float) -> Model:
    """Return what mergekit makes of files of models, of which the first may be the base.

    Raises:
        StoppedError: If it ends with an error.
    """
    from safetensors.torch import load_file

    base: dict[str, Any] = {"base_model": str(paths[0])} if based else {}
    listed = [{"model": str(path), "parameters": {"weight": 1.0, **parameters}} for path in paths[based:]]
    Path("merge.yml").write_text(json.dumps({"merge_method": method, **base, "models": listed}))
    command = Path(os.environ["MERGEKIT_PYTHON"]).with_name("mergekit-pytorch")
    ended = subprocess.run([command, "merge.yml", "merged", "--quiet"], capture_output=True, text=True)
    if ended.returncode:
        raise StoppedError(of_traceback(ended.stderr))
    (path,) = Path("merged").glob("*.safetensors")
    return load_file(path)
