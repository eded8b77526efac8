"""Models as files of all kinds, for tests of streaming."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from lightning_tricks.lifecycle import safetensors_files
from lightning_tricks.lifecycle.stored import as_bytes


def state(seed: int, dtype: torch.dtype = torch.float32, *, rows: int = 7001) -> OrderedDict[str, Tensor]:
    """Return a state dict with all that a network may hold: tied, transposed, 0-d and empty tensors, too."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    table, large = random(rows, 3), random(40, 9)
    return OrderedDict(
        {
            "embedding.weight": table,
            "norm.weight": random(5),
            "norm.running_mean": random(5),
            "norm.num_batches_tracked": torch.tensor(seed),
            "scale": random(),
            "one": random(1),
            "none": torch.zeros(0, 3, dtype=dtype),
            "same": torch.full((2000,), 0.1, dtype=dtype),
            "barely": torch.cat([torch.full((9000,), 0.1, dtype=dtype), random(3)]),
            "mask": torch.full((3, 3), -torch.inf, dtype=dtype).triu(1),
            "flags": torch.arange(4) == seed,
            "columns": large.t(),
            "window": large[2:4],
            "image": random(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
            "head.weight": table.detach(),
        }
    )


def lightnings(model: dict[str, Tensor], path: Path, **others: Any) -> Path:
    torch.save({"state_dict": model, "epoch": 3, "hyper_parameters": {"width": 2}, **others}, path)
    return path


def plain(model: dict[str, Tensor], path: Path) -> Path:
    torch.save(model, path)
    return path


def old(model: dict[str, Tensor], path: Path) -> Path:
    torch.save(model, path, _use_new_zipfile_serialization=False)
    return path


def packed(model: dict[str, Tensor], path: Path) -> Path:
    """Write what a zip tool makes of a checkpoint."""
    torch.save(model, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def safetensors(model: dict[str, Tensor], path: Path) -> Path:
    """Write a file of the format; that ours is the format's is tested beside."""
    shapes = {name: (value.shape, value.dtype) for name, value in model.items()}
    offsets = safetensors_files.lay_out(path, shapes, {})
    with path.open("r+b") as stream:
        for name, offset in offsets.items():
            stream.seek(offset)
            stream.write(as_bytes(model[name].reshape(-1)))
    return path


def index(model: dict[str, Tensor], path: Path) -> Path:
    """Write two files and their index."""
    path.mkdir()
    halves = [dict(list(model.items())[part::2]) for part in (0, 1)]
    for number, half in enumerate(halves):
        safetensors(half, path / f"{number}.safetensors")
    places = {name: f"{number}.safetensors" for number, half in enumerate(halves) for name in half}
    file = path / "model.safetensors.index.json"
    file.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return file


def folder(model: dict[str, Tensor], path: Path, **others: Any) -> Path:
    """Write the folder of a distributed checkpoint as Lightning does under FSDP2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of being one process
        # Contiguous, as the parts are that processes hold.
        content = {"state_dict": {name: value.contiguous() for name, value in model.items()}, **others}
        dcp.save(content, checkpoint_id=path, no_dist=True)
    torch.save({"epoch": 3, "hyper_parameters": {"width": 2}}, path / "meta.pt")
    return path


KINDS = {
    "a.ckpt": lightnings,
    "a.pt": plain,
    "old.pt": old,
    "packed.pt": packed,
    "a.safetensors": safetensors,
    "index": index,
    "folder": folder,
}


class Net(nn.Module):
    """A module with a counter and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.second.weight = self.first.weight
