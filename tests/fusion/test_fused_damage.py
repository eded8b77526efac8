"""Files that must not be read, or cannot, and outputs that cannot be written: nothing is lost."""

from __future__ import annotations

import errno
import os
import pickle
import platform
import re
import resource
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_tricks import Average, TaskArithmetic, fuse
from tests.fusion.stored import folder, index, lightnings, old, plain, safetensors, state
from tests.toys import assert_equal


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", ["zip", "old", "pickle", "folder"])
def test_a_malicious_file_is_refused_and_runs_nothing(write: str, tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / "evil.ckpt"
    content = {"state_dict": {"w": torch.ones(1)}, "hyper_parameters": Evil(touched)}
    if write == "folder":
        path = folder(state(0), tmp_path / "folder")
        (path / ".metadata").write_bytes(pickle.dumps(content))
    elif write == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "zip")
    with pytest.raises(ValueError, match=r"must (describe|hold) tensors.* (posix\.mkdir|torch\.)"):
        fuse([path, path], output=tmp_path / "fused.ckpt")
    assert not touched.exists()
    assert not (tmp_path / "fused.ckpt").exists()


class Settings:
    """An object that a checkpoint may hold, if it may."""

    width = 3


def test_a_checkpoint_with_objects_needs_a_flag_that_names_the_risk(tmp_path: Path) -> None:
    paths = [lightnings(state(seed), tmp_path / f"{seed}.ckpt", settings=Settings()) for seed in range(2)]
    with pytest.raises(
        ValueError, match=r"got \S+Settings: .* can run any code .* allow_pickle lets it"
    ) as caught:
        fuse(paths)
    assert "\n" not in str(caught.value)
    written = fuse(paths, output=tmp_path / "fused.ckpt", allow_pickle=True)
    assert type(torch.load(written, weights_only=False)["settings"]) is Settings  # type: ignore[arg-type]


def test_tensors_within_objects_of_the_first_are_refused(tmp_path: Path) -> None:
    hidden = Settings()
    hidden.table = torch.ones(3)  # type: ignore[attr-defined]
    path = lightnings(state(0), tmp_path / "a.ckpt", settings=hidden)
    with pytest.raises(ValueError, match="must hold tensors in dicts and lists alone, not in objects"):
        fuse([path], output=tmp_path / "fused.ckpt", allow_pickle=True)
    assert not list(tmp_path.glob("*fused*"))


@pytest.mark.parametrize("kind", ["symlink", "hard link", "same", "shard"])
def test_an_input_is_never_overwritten(kind: str, tmp_path: Path) -> None:
    path = plain(state(0), tmp_path / "a.ckpt")
    output = tmp_path / "b.ckpt"
    if kind == "symlink":
        output.symlink_to(path)
    elif kind == "hard link":
        os.link(path, output)
    elif kind == "same":
        output = tmp_path / "." / "a.ckpt"
    else:
        path = index(state(0), tmp_path / "shards")
        output = path.with_name("0.safetensors")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"output must be none of the inputs, got .*, which is"):
        fuse([path, state(1)], output=output, overwrite=True)
    assert path.read_bytes() == before


def test_an_output_is_replaced_only_if_it_may_and_of_a_known_kind(tmp_path: Path) -> None:
    output = tmp_path / "fused.ckpt"
    output.write_text("before")
    with pytest.raises(FileExistsError, match=r"output must be a new file, got .*fused.ckpt"):
        fuse([state(0)], output=output)
    assert output.read_text() == "before"
    fuse([state(0)], output=output, overwrite=True)
    assert_equal(dict(torch.load(output, weights_only=True)["state_dict"]), dict(state(0)))
    with pytest.raises(
        ValueError, match=r"suffix of output must be one of '.ckpt', '.safetensors', got '.pt'"
    ):
        fuse([state(0)], output=tmp_path / "fused.pt")
    folder = tmp_path / "folder.ckpt"
    folder.mkdir()
    with pytest.raises(IsADirectoryError, match=r"output must be a file, got .*folder.ckpt, a folder"):
        fuse([state(0)], output=folder, overwrite=True)


@pytest.mark.parametrize("output", ["fused.ckpt", "fused.safetensors"])
def test_a_full_disk_leaves_what_was_there(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / output
    path.write_text("before")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            fuse([state(0), state(1)], output=path, overwrite=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            fuse([{name: torch.zeros(300_000) for name in "abc"}], output=path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"\d+ bytes are needed in .*, but 1000 are free"):
        fuse([state(0), state(1)], output=path, overwrite=True)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


class Slow(Average):
    """A method that tells when it is at work, and does not end."""

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        os.write(self.pipe, b"!")  # type: ignore[attr-defined]
        time.sleep(60)
        return tensors[0]


def test_a_kill_in_the_midst_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "fused.ckpt"
    path.write_text("before")
    told, pipe = os.pipe()
    if (child := os.fork()) == 0:
        try:
            method = Slow()
            object.__setattr__(method, "pipe", pipe)
            fuse([{"w": torch.ones(9)}, {"w": torch.zeros(9)}], method, path, overwrite=True)
        finally:
            os._exit(1)
    os.read(told, 1)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(told)
    os.close(pipe)
    assert path.read_text() == "before"
    (left,) = tmp_path.glob(".fused.ckpt.*.part")
    others = [
        left.rename(left.with_name(left.name.replace(*change)))  # of a process that runs, and of other files
        for change in (
            (f".{child}.", f".{os.getppid()}."),
            (f".{child}.", ".1.2."),
            ("fused", "fused.ckpt"),
            (platform.node(), "elsewhere"),
        )
        if left.write_bytes(b"") == 0
    ]
    left.write_text("of the killed process")
    fuse([state(0)], output=path, overwrite=True)
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_result_too_large_for_its_type_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    large = torch.finfo(dtype).max
    models = [{"w": torch.zeros(3, dtype=dtype)}, {"w": torch.tensor([1, -large / 4, 0], dtype=dtype)}]
    message = rf"w must stay within {dtype}, up to {large:g}, but does not by TaskArithmetic(scale=10"
    for call in (TaskArithmetic(scale=10).fuse, partial(fuse, method=TaskArithmetic(scale=10))):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(models)  # type: ignore[operator]
    with pytest.raises(ValueError, match=re.escape(message)):
        fuse(models, TaskArithmetic(scale=10), tmp_path / "fused.ckpt")
    assert not list(tmp_path.iterdir())
    assert fuse(models, TaskArithmetic(scale=4))["w"].tolist() == [4, -large, 0]  # type: ignore[index]


def test_a_changed_bit_is_found_if_checksums_are_verified(tmp_path: Path) -> None:
    path = lightnings({"a": torch.ones(3000), "b": torch.ones(2)}, tmp_path / "a.ckpt")
    wanted = fuse([path], verify=True)
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(3000).numpy().tobytes()) + 5000] ^= 1
    path.write_bytes(data)
    assert not torch.equal(fuse([path])["a"], wanted["a"])  # type: ignore[index]
    with pytest.raises(ValueError, match=r"a\.ckpt must be as it was written, but \S+/data/0 in it"):
        fuse([path], output=tmp_path / "fused.ckpt", verify=True)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda model, path: old(model, path.with_suffix(".pt")),
            "must be an archive of torch.save to be verified",
        ),
        (safetensors, "verify must be False for .*, whose format knows no checksums"),
        (index, "verify must be False"),
        (folder, "verify must be False"),
        (lambda model, path: fuse([model], output=path.with_suffix(".ckpt")), "must hold checksums"),
    ],
)
def test_files_without_checksums_cannot_be_verified(write: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fuse([write(state(0), tmp_path / "a.safetensors")], verify=True)


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    whole = safetensors(state(0), tmp_path / "whole.safetensors").read_bytes()
    ckpt = lightnings(state(0), tmp_path / "whole.ckpt").read_bytes()
    header = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}'
    torch.save({"epoch": 3}, tmp_path / "no_model.ckpt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    lone = index(state(0), tmp_path / "lone")
    lone.with_name("1.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    cut = folder(state(0), tmp_path / "cut")
    (cut / ".metadata").write_bytes((cut / ".metadata").read_bytes()[:100])
    cases: list[tuple[Path, type[Exception], str]] = [
        (tmp_path / "none.ckpt", FileNotFoundError, "none.ckpt"),
        (tmp_path / "none.safetensors", FileNotFoundError, "none.safetensors"),
        (file("cut.ckpt", ckpt[: len(ckpt) // 2]), ValueError, "cut.ckpt must be a whole file of torch.save"),
        (file("text.ckpt", b"no checkpoint"), ValueError, "text.ckpt must be a whole file of torch.save"),
        (file("empty.ckpt", b""), ValueError, "empty.ckpt must be a whole file of torch.save"),
        (
            tmp_path / "no_model.ckpt",
            ValueError,
            "must hold a checkpoint or a state dict, got a dict of 'epoch'",
        ),
        (tmp_path / "tensor.pt", ValueError, "must hold a checkpoint or a state dict, but holds no dict"),
        (file("cut.safetensors", whole[:-4]), ValueError, "cut.safetensors must be a whole file"),
        (file("s.safetensors", b"\x10"), ValueError, "s.safetensors must be a whole file of safetensors"),
        (
            file("h.safetensors", len(header).to_bytes(8, "little") + header + bytes(8)),
            ValueError,
            "bytes 0 to 8",
        ),
        (
            file("j.safetensors", (2).to_bytes(8, "little") + b"[]"),
            ValueError,
            "must be a whole file of safe",
        ),
        (lone, FileNotFoundError, "1.safetensors"),
        (file("x.safetensors.index.json", b"{}"), ValueError, "must be an index of safetensors files"),
        (tmp_path / "empty", ValueError, "must be a file, or the folder of a distributed checkpoint"),
        (cut, ValueError, "must describe tensors, and nothing else"),
    ]
    for path, kind, message in cases:
        with pytest.raises(kind, match=re.escape(message)):
            fuse([state(0), path])
