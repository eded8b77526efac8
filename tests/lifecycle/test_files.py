from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from lightning_tricks.lifecycle.files import checkpoint_folder, free_path, load, save
from tests.toys import trainer

CONTENT = {"w": torch.arange(5.0), "nested": [1, "two", None, {"x": 0.5}]}


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "new" / "folder" / "a.pt"
    size = save(CONTENT, path)
    assert size == path.stat().st_size
    assert [entry.name for entry in path.parent.iterdir()] == ["a.pt"]
    loaded = load(path)
    assert torch.equal(loaded["w"], CONTENT["w"]) and loaded["nested"] == CONTENT["nested"]


def test_torch_loads_it_safely_and_ties_survive(tmp_path):
    shared = torch.ones(3)
    save({"a": shared, "b": shared}, tmp_path / "a.pt")
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()


def test_equal_content_makes_files_of_equal_size_under_any_name(tmp_path):
    assert save(CONTENT, tmp_path / "a.pt") == save(CONTENT, tmp_path / "a much longer name.pt")


def test_other_users_may_read_it_as_they_may_any_new_file(tmp_path):
    save(CONTENT, tmp_path / "a.pt")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("where", ["save", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_or_none(tmp_path, monkeypatch, existed, where, error):
    path = tmp_path / "a.pt"
    if existed:
        save({"old": 1}, path)

    def fail(*_):
        raise error

    owner = torch if where == "save" else os
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, fail)
        with pytest.raises(type(error)):
            save(CONTENT, path)
    assert [entry.name for entry in tmp_path.iterdir()] == (["a.pt"] if existed else [])
    if existed:
        assert load(path) == {"old": 1}


def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path):
    path = tmp_path / "a.pt"
    save({"old": 1}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save({"w": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]
    assert load(path) == {"old": 1}


def test_a_reader_never_sees_a_part(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save({"old": 1}, path)
    seen = []
    real = os.fsync

    def look(descriptor):
        real(descriptor)
        seen.append(load(path))

    monkeypatch.setattr(os, "fsync", look)
    save(CONTENT, path)
    assert seen == [{"old": 1}]
    assert "w" in load(path)


def test_mapped_tensors_outlive_a_replaced_or_deleted_file(tmp_path):
    path = tmp_path / "a.pt"
    save({"w": torch.ones(100_000)}, path)
    first = load(path)["w"]
    save({"w": torch.zeros(100_000)}, path)
    path.unlink()
    assert first.sum() == 100_000


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.pt must be there, but it is not"):
        load(tmp_path / "a.pt")


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "a.pt"
    save(CONTENT, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a\.pt must be a whole file of tensors"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.pt must be a whole file of tensors"):
        load(path)


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Trap()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt must be a whole file of tensors"):
        load(tmp_path / "a.pt")
    assert not Path("trapped").exists()


def test_free_path_never_gives_a_name_that_is_taken(tmp_path):
    names = []
    for _ in range(3):
        path = free_path(tmp_path / "fused.ckpt")
        path.touch()
        names.append(path.name)
    assert names == ["fused.ckpt", "fused-v1.ckpt", "fused-v2.ckpt"]
    (tmp_path / "snapshots").mkdir()
    assert free_path(tmp_path / "snapshots").name == "snapshots-v1"


def test_without_model_checkpoint_the_folder_is_lightnings_own(tmp_path):
    assert checkpoint_folder(trainer(default_root_dir=tmp_path)) == tmp_path / "checkpoints"


def test_a_remote_folder_is_refused():
    with pytest.raises(ValueError, match="must be a local one .*, got s3://bucket/run"):
        checkpoint_folder(trainer(default_root_dir="s3://bucket/run"))
