from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from lightning_tricks.lifecycle.checkpoints import (
    average_state,
    averaged_steps,
    live_state,
    read_sets,
    write_sets,
)
from lightning_tricks.lifecycle.sets_of_parts import load_average, take_sets
from lightning_tricks.lifecycle.weights_only import WeightsOnlyHook
from tests.toys import Loader, Toy, assert_equal, trainer, weights


def toy_sets() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return live weights and another set of the same names."""
    live = weights(Toy())
    return live, {name: value + 1 for name, value in live.items()}


def written(save: str) -> dict[str, Any]:
    live, average = toy_sets()
    checkpoint: dict[str, Any] = {"state_dict": {}}
    write_sets(checkpoint, live=live, average=average, save=save)
    return checkpoint


@pytest.mark.parametrize(
    ("save", "first", "beside"),
    [("average", 1, "current_model_state"), ("live", 0, "average_model_state")],
)
def test_the_set_that_save_names_stands_where_everybody_looks(
    save: str, first: int, beside: str, tmp_path: Path
) -> None:
    checkpoint, sets = written(save), toy_sets()
    assert checkpoint.keys() == {"state_dict", beside}
    assert_equal(checkpoint["state_dict"], sets[first])
    torch.save(checkpoint, tmp_path / "a.ckpt")
    assert_equal((live_state(tmp_path / "a.ckpt"), average_state(tmp_path / "a.ckpt")), sets)


def test_the_last_to_write_decides_the_layout() -> None:
    for save, keys in (("live", ["average_model_state"]), ("average", ["current_model_state"])):
        checkpoint = written("average")
        live, average = read_sets(checkpoint)
        write_sets(checkpoint, live=live, average=average, save=save)
        assert [*checkpoint] == ["state_dict", *keys]
        assert_equal(read_sets(checkpoint), toy_sets())


def test_a_plain_checkpoint_holds_the_live_weights_alone(tmp_path: Path) -> None:
    torch.save({"state_dict": toy_sets()[0]}, tmp_path / "a.ckpt")
    assert_equal(live_state(tmp_path / "a.ckpt"), toy_sets()[0])
    with pytest.raises(ValueError, match=r"path must be a checkpoint with averaged weights, got '.*a.ckpt'"):
        average_state(str(tmp_path / "a.ckpt"))


def test_nothing_but_weights_is_unpickled(tmp_path: Path) -> None:
    torch.save({"state_dict": toy_sets()[0], "path": tmp_path}, tmp_path / "a.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        live_state(tmp_path / "a.ckpt")


@pytest.mark.parametrize(("start", "moved"), [(None, 3), (100, 0)])
def test_lightnings_own_layout_is_read(start: int | None, moved: int, tmp_path: Path) -> None:
    class Notes(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.live = weights(pl_module)
            trainer.save_checkpoint(path)

    path, notes = tmp_path / "a.ckpt", Notes()
    lightnings = EMAWeightAveraging(decay=0.5, update_starting_at_step=start)
    trainer(lightnings, notes, max_steps=3).fit(Toy(), Loader())
    checkpoint = torch.load(path, weights_only=True)
    assert averaged_steps(checkpoint) == moved
    assert averaged_steps({}) == 0
    assert_equal(live_state(path), notes.live)
    if moved:
        assert_equal(average_state(path), checkpoint["state_dict"])
    else:  # what it calls the average are the weights before training
        with pytest.raises(ValueError, match="averaged weights"):
            average_state(path)


@pytest.mark.parametrize("save", ["average", "live"])
def test_taking_the_sets_puts_the_live_one_into_the_module(save: str) -> None:
    live, average = toy_sets()
    module, checkpoint = Toy(), written(save)
    module.load_state_dict(checkpoint["state_dict"])
    found = take_sets(module, checkpoint, {})
    assert found is not None
    assert_equal(found, average)
    assert_equal(weights(module), live)


def test_taking_finds_no_average_in_a_plain_checkpoint() -> None:
    module = Toy()
    assert take_sets(module, {"state_dict": toy_sets()[1]}, {}) is None
    assert_equal(weights(module), toy_sets()[0])


def test_names_of_a_compiled_module_are_cleaned() -> None:
    live, average = toy_sets()
    state = {f"_orig_mod.{name}": value for name, value in average.items()}
    found = take_sets(Toy(), {"state_dict": state, "current_model_state": live}, {})
    assert found is not None
    assert found.keys() == average.keys()


def test_an_average_beside_is_loaded_for_evaluation() -> None:
    for save, loaded in (("live", toy_sets()[1]), ("average", toy_sets()[0])):
        module = Toy()
        load_average(module, written(save), {})
        assert_equal(weights(module), loaded)


class Own(Toy):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["order"] = [*checkpoint.get("order", []), "own"]


def edit(checkpoint: dict[str, Any]) -> None:
    checkpoint["order"] = [*checkpoint.get("order", []), "edit"]


def saved(module: Toy, **checkpoint: Any) -> list[str]:
    module.on_save_checkpoint(checkpoint)
    return checkpoint["order"]


def test_only_weights_only_checkpoints_of_its_trainer_are_edited_before_the_modules_own_hook() -> None:
    module, runner, other = Own(), trainer(), trainer()
    module.trainer = runner
    hook = WeightsOnlyHook(runner, module, edit)
    assert saved(module) == ["edit", "own"]
    assert saved(module, callbacks={}) == ["own"]
    module.trainer = other
    assert saved(module) == ["own"]
    hook.remove()
    assert "on_save_checkpoint" not in vars(module)


def test_hooks_go_in_any_order_and_leave_what_was_there() -> None:
    module = Own()
    module.on_save_checkpoint = mine = lambda checkpoint: checkpoint.setdefault("order", []).append("mine")
    module.trainer = runner = trainer()
    first = WeightsOnlyHook(runner, module, edit)
    second = WeightsOnlyHook(runner, module, edit)
    first.remove()
    assert vars(module)["on_save_checkpoint"] is second
    assert saved(module) == ["edit", "mine"]
    second.remove()
    assert saved(module) == ["mine"]
    first.remove()
    assert vars(module)["on_save_checkpoint"] is mine


@pytest.mark.parametrize("read", [live_state, average_state])
@pytest.mark.parametrize("kind", ["weights alone", "a text", "nothing", "a folder", "a list"])
def test_what_is_no_checkpoint_is_refused_by_name(read, kind, tmp_path):
    path = tmp_path / "file"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a text":
        path.write_text("hello")
    elif kind == "nothing":
        path.touch()
    else:
        torch.save({"weight": torch.ones(1)} if kind == "weights alone" else [1], path)
    with pytest.raises(ValueError, match="path must be a checkpoint of Lightning, got '.*file'"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")
