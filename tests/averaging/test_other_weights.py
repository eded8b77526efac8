"""Weights that the user puts into the module between two fits of one Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.core.collect import LastEpochs
from lightning_tricks.fusion.fusion import WeightFusion
from tests.averaging.watching import Watch, every_kind, live_of, parameters, slow_twin, watched
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights

VALIDATION = Loader(2, seed=9)
OTHERS = ": the module holds other weights than the average"


def load_all(module: LightningModule) -> None:
    module.load_state_dict({name: value + 1 for name, value in weights(module).items()})


def move_one(module: LightningModule) -> None:
    with torch.no_grad():
        module.head.bias[0] += 0.5


def move_memory(module: LightningModule) -> None:
    module.head.weight.data = torch.ones_like(module.head.weight)


def replace_layer(module: LightningModule) -> None:
    module.head = nn.Linear(8, 3, dtype=module.head.weight.dtype)


def again(
    runner: Trainer, module: LightningModule, watch: Watch, capsys: Any, **settings: Any
) -> tuple[Watch, str]:
    """Fit one epoch more; return what a new watch saw, and what was said."""
    later = Watch()
    callbacks: list[Callback] = runner.callbacks
    callbacks[callbacks.index(watch)] = later
    runner.fit_loop.max_epochs += 1
    capsys.readouterr()
    runner.fit(module, Loader(), VALIDATION, **settings)
    return later, capsys.readouterr().out


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("change", [load_all, move_one, move_memory, replace_layer])
def test_other_weights_stay_and_averaging_begins_anew_from_them(
    change: Any, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ema = EMAWeights(decay=0.9, buffers="average", dtype="float64")
    module, watch, runner = watched(ema, precision=precision, max_epochs=2)
    change(module)
    other = weights(module)
    later, said = again(runner, module, watch, capsys)
    assert_equal(later.starts[0], other)
    assert ema.outcome()["updates"] == 5
    steps = [{name: value.double() for name, value in step.items()} for step in later.steps]
    expected = slow_twin(steps, lambda _: 0.9, warmup=True, every=1, start=0)
    torch.testing.assert_close(ema.saved()["wide"]["head.weight"], expected["head.weight"])
    assert_equal(live_of(ema, module), later.steps[-1])
    assert [line for line in said.splitlines() if "other weights" in line] == [
        f"EMAWeights{OTHERS}, so training goes on from them and averaging begins anew"
    ]


def spoil(module: LightningModule) -> None:
    with torch.no_grad():
        module.head.bias[0] = torch.nan


@pytest.mark.parametrize(
    ("settings", "run"),
    [
        ({}, {}),
        ({"buffers": "average"}, {}),
        ({"dtype": "float64"}, {}),
        ({}, {"precision": "bf16-true"}),
        ({"device": "cpu"}, {"precision": "bf16-true"}),
        ({"dtype": "float32"}, {"precision": "64-true"}),
    ],
)
def test_the_average_itself_in_any_type_gives_way_to_the_live_weights_whatever_the_buffers(
    settings: dict[str, Any], run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    ema = EMAWeights(decay=0.9, **settings)
    module, watch, runner = watched(ema, max_epochs=2, **run)
    module.body[1].running_mean.zero_()
    module.load_state_dict(weights(module))
    later, said = again(runner, module, watch, capsys)
    assert_equal(parameters(later.starts[0]), parameters(watch.steps[-1]))
    assert ema.outcome()["updates"] == 15
    assert "other weights" not in said


def test_an_average_that_is_no_number_is_still_known(capsys: pytest.CaptureFixture[str]) -> None:
    class Diverges(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            spoil(pl_module)

    ema = EMAWeights(decay=0.9)
    module, watch, runner = watched(ema, None, Diverges(), max_epochs=1)
    assert module.head.bias.isnan().any()
    _, said = again(runner, module, watch, capsys)
    assert ema.outcome()["updates"] == 10
    assert "other weights" not in said


@pytest.mark.parametrize("loads", [False, True])
def test_a_checkpoint_rules_over_whatever_the_module_holds(
    loads: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ema = EMAWeights(decay=0.9)
    module, watch, runner = watched(ema, max_epochs=2)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    if loads:
        load_all(module)
    later, said = again(runner, module, watch, capsys, ckpt_path=tmp_path / "a.ckpt")
    assert_equal(later.starts[0], watch.steps[-1])
    assert ema.outcome()["updates"] == 15
    assert "other weights" not in said
    load_all(module)
    other = weights(module)
    later, said = again(runner, module, later, capsys)  # Lightning still remembers the path
    assert_equal(later.starts[0], other)
    assert said.count(OTHERS) == 1


@every_kind
@pytest.mark.parametrize("save", ["average", "live"])
def test_a_test_of_the_same_checkpoint_changes_nothing(
    kind: Any, save: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ema = kind(save=save)
    module, watch, runner = watched(ema, precision="bf16-true", max_epochs=2)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    runner.test(module, VALIDATION, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    later, said = again(runner, module, watch, capsys)
    assert_equal(parameters(later.starts[0]), parameters(watch.steps[-1]))
    assert "other weights" not in said


@pytest.mark.parametrize("average_first", [True, False])
@pytest.mark.parametrize("loads", [False, True])
def test_beside_a_fusion_too(
    loads: bool, average_first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ema, fusion = EMAWeights(decay=0.9), WeightFusion(collect=LastEpochs(2), keep="always")
    both = [ema, fusion] if average_first else [fusion, ema]
    module, watch = Toy(), Watch()
    runner = trainer(*both, watch, max_epochs=2, default_root_dir=tmp_path)
    runner.fit(module, Loader(), VALIDATION)
    if loads:
        load_all(module)
    other = weights(module)
    later, said = again(runner, module, watch, capsys)
    assert_equal(later.starts[0], other if loads else watch.steps[-1])
    assert ema.outcome()["updates"] == (5 if loads else 15)
    assert said.count("the module holds other weights than") == 2 * loads


@every_kind
def test_with_nothing_left_to_train_other_weights_stay_too(
    kind: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ema = kind()
    module, _, runner = watched(ema, max_epochs=2)
    load_all(module)
    other = weights(module)
    runner.fit(module, Loader(), VALIDATION)
    assert_equal(weights(module), other)
    assert capsys.readouterr().out.count(OTHERS) == 1


def test_it_is_said_before_training_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, watch, runner = watched(EMAWeights(decay=0.9), max_epochs=2)
    load_all(module)
    runner.callbacks.append(StopAfter(1, tmp_path / "a.ckpt"))
    with pytest.raises(StopError):
        again(runner, module, watch, capsys)
    assert capsys.readouterr().out.count(OTHERS) == 1


@every_kind
def test_a_fit_of_another_module_leaves_them_where_they_are(
    kind: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ema = kind()
    module, watch, runner = watched(ema, max_epochs=2)
    load_all(module)
    other = weights(module)
    later, said = again(runner, Toy(), watch, capsys)
    assert_equal(weights(module), other)
    assert_equal(later.starts[0], weights(Toy()))
    assert "other weights" not in said


def test_other_weights_in_one_process_count_in_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ema = EMAWeights(decay=0.9)
    module, watch, runner = watched(ema, max_epochs=2)
    held = weights(module)
    monkeypatch.setattr(runner.strategy, "reduce_boolean_decision", lambda decision, all=True: False)
    later, said = again(runner, module, watch, capsys)
    assert_equal(later.starts[0], held)
    assert said.count(OTHERS) == 1
