"""What fused models look like in files."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_tricks import Average, EMAWeights, Interpolate, average_state, fuse, live_state
from lightning_tricks.lifecycle import safetensors_files
from tests.fusion.stored import Net, lightnings, plain, state
from tests.lifecycle.test_export import Saved
from tests.toys import Loader, assert_equal, scaler_plugin, trainer, weights


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints of a module with hyperparameters and an entry of its own, live and averaged."""
    base = tmp_path_factory.mktemp("runs")
    paths = []
    for lr in (0.01, 0.02):
        runner = trainer(EMAWeights(decay=0.9), plugins=[scaler_plugin()], max_epochs=1)
        runner.fit(Saved(lr=lr), Loader())
        paths.append(base / f"{lr}.ckpt")
        runner.save_checkpoint(paths[-1])
    return paths


def test_a_checkpoint_loads_with_class_and_hyperparameters_of_the_first(
    runs: list[Path], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    written = fuse(
        runs, Interpolate(0.25), tmp_path / "fused.ckpt", sha256=True, progress=lambda *now: told.append(now)
    )
    hashed = sum(path.stat().st_size for path in runs)
    assert (hashed, told[-1][1]) in told and told[-1][0] == told[-1][1] > hashed  # twice over the files
    module = Saved.load_from_checkpoint(written, weights_only=True)
    states = [torch.load(path, weights_only=True)["state_dict"] for path in runs]
    assert_equal(dict(module.state_dict()), Interpolate(0.25).fuse(states))
    assert module.tied.weight is module.head.weight
    assert (module.lr, module.note) == (0.01, "mine")
    content = torch.load(written, weights_only=True)
    assert content["state_dict"]._metadata == states[0]._metadata
    storages = {content["state_dict"][name].data_ptr() for name in ("tied.weight", "head.weight")}
    assert len(storages) == 1
    assert (
        not {"callbacks", "loops", "optimizer_states", "lr_schedulers", "current_model_state"}
        & content.keys()
    )
    about = content["fusion"]
    assert about["method"] == "Interpolate" and about["settings"] == {"alpha": 0.25}
    for path, model in zip(runs, about["models"], strict=True):
        assert model["name"] == str(path) and model["size"] == path.stat().st_size
        assert model["sha256"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    trainer().test(module, Loader(), ckpt_path=written, verbose=False, weights_only=True)


@pytest.mark.parametrize(("which", "read"), [("live", live_state), ("average", average_state)])
def test_either_set_of_a_checkpoint_is_fused(which: Any, read: Any, runs: list[Path], tmp_path: Path) -> None:
    expected = Average().fuse([read(path) for path in runs])
    assert_equal(fuse(runs, which=which), expected)
    written = fuse(runs, output=tmp_path / "fused.ckpt", which=which)
    assert_equal(weights(Saved.load_from_checkpoint(written, weights_only=True)), expected)
    with pytest.raises(ValueError, match=f"which must be 'state_dict' for .*, no checkpoint, got '{which}'"):
        fuse([plain(state(0), tmp_path / "plain.pt")], which=which)


def test_safetensors_hold_ties_twice_and_how_they_came_about(tmp_path: Path) -> None:
    models = [Net(), Net().state_dict()]
    written = fuse(models, output=tmp_path / "fused.safetensors")
    data = Path(written).read_bytes()  # type: ignore[arg-type]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    metadata = header.pop("__metadata__")
    assert metadata["format"] == "pt"
    about = json.loads(metadata["fusion"])
    assert about["method"] == "Average" and about["settings"] == {"weights": None}
    assert [model["name"] for model in about["models"]] == ["model 0", "model 1"]
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert spans[0][0] == 0 and spans[-1][1] == len(data) - 8 - length
    assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))
    Net().load_state_dict(fuse([written]))  # type: ignore[arg-type]


def test_the_library_reads_ours_and_ours_reads_the_librarys(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    model = {name: value.contiguous().clone() for name, value in state(0).items()}
    library.save_file(model, tmp_path / "theirs.safetensors", metadata={"note": "ü"})
    assert_equal(fuse([tmp_path / "theirs.safetensors"]), model)
    written = fuse([model], output=tmp_path / "ours.safetensors")
    assert_equal(library.load_file(written), model)


def test_what_is_no_tensor_is_kept_from_the_last_in_a_checkpoint_alone(tmp_path: Path) -> None:
    extra = [{"state": number, "moments": torch.full((2,), float(number))} for number in (1, 2)]
    paths = [
        lightnings({"w": torch.ones(2), "_extra_state": each}, tmp_path / f"{number}.ckpt")
        for number, each in enumerate(extra)
    ]
    written = fuse(paths, output=tmp_path / "fused.ckpt")
    kept = torch.load(written, weights_only=True)["state_dict"]
    assert list(kept) == ["w", "_extra_state"]
    assert kept["_extra_state"]["state"] == 2 and kept["_extra_state"]["moments"].tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match=r"must be a .ckpt, since .safetensors cannot hold '_extra_state'"):
        fuse(paths, output=tmp_path / "fused.safetensors")
    bad = lightnings({"w": torch.ones(2), "_extra_state": torch.ones(1)}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"_extra_state must be a tensor in all models or in none; in .*bad"):
        fuse([paths[0], bad])


def test_tensors_beside_the_weights_keep_their_content(tmp_path: Path) -> None:
    beside = {"codebook": torch.arange(6.0).view(2, 3).t(), "list": [torch.tensor(7), "text"]}
    paths = [lightnings(state(seed), tmp_path / f"{seed}.ckpt", beside=beside) for seed in range(2)]
    content = torch.load(fuse(paths, output=tmp_path / "fused.ckpt"), weights_only=True)  # type: ignore[arg-type]
    assert torch.equal(content["beside"]["codebook"], beside["codebook"])
    assert content["beside"]["list"][0] == 7 and content["epoch"] == 3


def test_a_file_of_the_other_byte_order_is_read(tmp_path: Path) -> None:
    path = plain({"w": torch.tensor([1.0, 2.0])}, tmp_path / "a.pt")
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    other = {"little": b"big", "big": b"little"}[sys.byteorder]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            swapped = b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
            archive.writestr(
                name, other if name.endswith("byteorder") else swapped if "/data/" in name else data
            )
    assert fuse([path])["w"].tolist() == [1.0, 2.0]  # type: ignore[index]


def test_tensors_that_are_not_dense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"w of model 0 must be a dense tensor, got torch.sparse_coo"):
        fuse([{"w": torch.eye(2).to_sparse()}])
    with pytest.raises(ValueError, match=r"w of model 0 must hold values, got a tensor on the meta device"):
        fuse([{"w": torch.ones(2, device="meta")}])
    with pytest.raises(TypeError, match=r"every name in model 0 must be text, got 1"):
        fuse([{1: torch.ones(2)}])  # type: ignore[dict-item]


def test_types_that_a_format_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"w must have a type that safetensors knows, got torch.complex128"):
        fuse([{"w": torch.ones(1, dtype=torch.complex128)}], output=tmp_path / "fused.safetensors")


@pytest.mark.parametrize("dtype", sorted(safetensors_files._NAMES, key=str), ids=str)
def test_tensors_of_all_types_go_through_files(dtype: torch.dtype, tmp_path: Path) -> None:
    model = {"w": torch.tensor([0, 1, 1, 0, 1]).to(dtype)}
    for output in ("fused.ckpt", "fused.safetensors"):
        found = fuse([fuse([model, model], output=tmp_path / output)])  # type: ignore[list-item]
        assert found["w"].dtype == dtype  # type: ignore[index]
        assert found["w"].to(torch.complex64).tolist() == [0, 1, 1, 0, 1]  # type: ignore[index]


def test_the_first_model_in_memory_makes_a_checkpoint_that_loads(tmp_path: Path) -> None:
    first, second = Saved(lr=0.5), Saved()
    written = fuse([first, second], output=tmp_path / "a" / "b" / "fused.ckpt")
    module = Saved()
    module.note = "mine"
    content = torch.load(written, weights_only=True)  # type: ignore[arg-type]
    module.load_state_dict(content["state_dict"])
    assert content.keys() == {"pytorch-lightning_version", "state_dict", "fusion"}
