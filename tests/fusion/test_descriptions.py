"""The description of tensors in a folder of a distributed checkpoint: read whoever wrote it, nothing else."""

from __future__ import annotations

import io
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from lightning_tricks import fuse
from tests.fusion.stored import folder, state
from tests.toys import assert_equal

FOREIGN = b"cbuiltins\ngetattr\n(ctorch.serialization\n_get_layout\nV__globals__\ntR."


@pytest.mark.parametrize("module", ["metadata", "filesystem", "_shard.api"])
def test_a_description_of_tensors_names_nothing_that_lies_beside_them(module: str, tmp_path: Path) -> None:
    path = folder(state(0), tmp_path / "folder")
    (path / ".metadata").write_bytes(f"ctorch.distributed.checkpoint.{module}\nos\n.".encode())
    with pytest.raises(
        ValueError, match=rf"torch\.distributed\.checkpoint\.{module}\.os describes no tensor"
    ):
        fuse([path])


class Older(pickle.Pickler):
    """Writes members of enumerations as Python up to 3.11.3 does."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


def test_what_an_older_python_wrote_is_read_and_no_other_attribute(tmp_path: Path) -> None:
    path, content = folder(state(0), tmp_path / "folder"), io.BytesIO()
    Older(content).dump(pickle.loads((path / ".metadata").read_bytes()))
    assert b"getattr" in content.getvalue()
    (path / ".metadata").write_bytes(content.getvalue())
    assert_equal(fuse([path]), fuse([folder(state(0), tmp_path / "other")]))
    (path / ".metadata").write_bytes(
        b"cbuiltins\ngetattr\n(ctorch.serialization\n_get_layout\nV__globals__\ntR."
    )
    with pytest.raises(ValueError, match="attribute '__globals__' describes no tensor"):
        fuse([path])
