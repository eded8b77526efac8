"""Checkpoints that were written by something else: without an average, by Lightning's own, by older code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from lightning_tricks import EMAWeights, SWAWeights
from tests.averaging.watching import Watch, differ, parameters, slow_twin
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights

VALIDATION = Loader(2, seed=9)


def test_added_on_a_resume_it_begins_with_the_loaded_weights_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch()
    with pytest.raises(StopError):
        trainer(StopAfter(7, tmp_path / "a.ckpt"), watch).fit(Toy(), Loader(), VALIDATION)
    ema = EMAWeights(decay=0.9)
    module, resumed = Toy(), Watch()
    trainer(ema, resumed).fit(module, Loader(), VALIDATION, ckpt_path=tmp_path / "a.ckpt")
    assert_equal(resumed.starts[0], watch.steps[7])
    expected = slow_twin(resumed.steps, lambda _: 0.9, warmup=True, every=1, start=0)
    torch.testing.assert_close(module.head.weight.detach(), expected["head.weight"])
    assert (
        "EMAWeights: the checkpoint holds no average of it, which begins as the weights are"
        in capsys.readouterr().out
    )


def test_a_checkpoint_from_which_the_average_was_stripped_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(EMAWeights(save="live"), StopAfter(7, path)).fit(Toy(), Loader())
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["average_model_state"]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="damaged under 'average_model_state'"):
        trainer(EMAWeights(save="live")).fit(Toy(), Loader(), ckpt_path=path)


def test_weights_that_joined_since_begin_as_they_are_and_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stripped(Toy):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            del checkpoint["state_dict"]["head.bias"]

    with pytest.raises(StopError):
        trainer(EMAWeights(), StopAfter(7, tmp_path / "a.ckpt")).fit(Stripped(), Loader())
    module = Toy()
    module.strict_loading = False
    trainer(EMAWeights()).fit(module, Loader(), ckpt_path=tmp_path / "a.ckpt")
    assert "the checkpoint lacks the average of head.bias, begun as they are" in capsys.readouterr().out


def lightnings(path: Path, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Save a checkpoint of Lightning's own averaging; return its average and the live weights."""
    watch = Watch()
    with pytest.raises(StopError):
        trainer(EMAWeightAveraging(**settings), watch, StopAfter(7, path)).fit(Toy(), Loader(), VALIDATION)
    return torch.load(path, weights_only=True)["state_dict"], watch.steps[-1]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # one callback less
def test_a_checkpoint_of_lightnings_own_averaging_goes_on_in_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    average, live = lightnings(tmp_path / "a.ckpt", decay=0.9)
    assert differ(average, live)
    ema, watch, module = EMAWeights(decay=0.9), Watch(), Toy()
    trainer(ema, watch).fit(module, Loader(), VALIDATION, ckpt_path=tmp_path / "a.ckpt")
    assert_equal(watch.starts[0], live)
    assert ema.outcome()["updates"] == 15
    m = average["head.weight"]
    for t, theta in enumerate(watch.steps[1:], start=7):
        d = min(0.9, (1 + t) / (10 + t))
        m = d * m + (1 - d) * theta["head.weight"]
    torch.testing.assert_close(module.head.weight.detach(), m)
    assert "EMAWeights: goes on from the average that the checkpoint holds" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_lightnings_initial_weights_are_taken_for_no_average(tmp_path: Path) -> None:
    stale, live = lightnings(tmp_path / "a.ckpt", update_starting_at_step=100)
    assert_equal(parameters(stale), parameters(weights(Toy())))
    watch = Watch()
    module = Toy()
    trainer(EMAWeights(decay=0.9), watch).fit(module, Loader(), VALIDATION, ckpt_path=tmp_path / "a.ckpt")
    assert_equal(watch.starts[0], live)
    expected = slow_twin(watch.steps, lambda _: 0.9, warmup=True, every=1, start=0)
    torch.testing.assert_close(module.head.weight.detach(), expected["head.weight"])


class Renamed(Toy):
    """A later version of the toy, which reads checkpoints of the earlier one."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = self.head
        del self.head

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.classifier(self.body(batch[0])), batch[1])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        for name in [name for name in state if name.startswith("head")]:
            state[name.replace("head", "classifier")] = state.pop(name)


@pytest.mark.parametrize("save", ["average", "live"])
def test_names_that_the_module_migrates_are_migrated_in_both_sets(save: str, tmp_path: Path) -> None:
    first, second = Watch(), Watch()
    with pytest.raises(StopError):
        trainer(EMAWeights(decay=0.9, save=save), first, StopAfter(7, tmp_path / "a.ckpt")).fit(
            Toy(), Loader()
        )
    module = Renamed()
    trainer(EMAWeights(decay=0.9, save=save), second).fit(module, Loader(), ckpt_path=tmp_path / "a.ckpt")
    steps = [{name.replace("head", "classifier"): v for name, v in step.items()} for step in first.steps]
    assert_equal(second.starts[0], steps[-1])
    expected = slow_twin(steps + second.steps[1:], lambda _: 0.9, warmup=True, every=1, start=0)
    torch.testing.assert_close(module.classifier.weight.detach(), expected["classifier.weight"])


@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_a_mean_of_late_snapshots_takes_no_average_of_others_for_one(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(EMAWeights(decay=0.9), StopAfter(7, path)).fit(Toy(), Loader(), VALIDATION)
    watch, swa = Watch(), SWAWeights(start=12, every=2)
    module = Toy()
    runner = trainer(swa, watch)
    runner.fit(module, Loader(), VALIDATION, ckpt_path=path)
    last = runner.global_step
    due = [watch.steps[step - 7]["head.weight"] for step in range(12, last + 1, 2)]
    assert swa.outcome() == {"snapshots": len(due)}
    torch.testing.assert_close(module.head.weight.detach(), torch.stack(due).mean(0))
