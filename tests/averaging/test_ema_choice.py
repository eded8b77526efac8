"""Which weights EMAWeights averages, in which types, and which settings it refuses."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from lightning_tricks import ConflictError
from lightning_tricks.averaging.ema import EMAWeights
from tests.averaging.watching import differ, live_of, slow_twin, watched
from tests.toys import Compiled, Loader, Toy, assert_equal, trainer, weights


class Zoo(Toy):
    """Weights that are tied, complex, without dimension, whole, frozen; buffers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Linear(8, 3)
        self.tied.weight = self.head.weight
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.table = nn.Parameter(torch.arange(3), requires_grad=False)
        self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf, -math.inf]))
        self.register_buffer("index", torch.arange(100_000))
        self.register_buffer("used", torch.tensor([True, False]))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("moving", torch.zeros(()))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        if self.training:
            self.moving = self.moving + 1.0  # another tensor, as user code does it
        logits = self.tied(self.body(batch[0])) * self.scale + (self.phase * self.phase.conj()).real
        return nn.functional.cross_entropy(logits + self.head(self.body(batch[0])), batch[1])


def test_every_kind_of_tensor() -> None:
    ema = EMAWeights(decay=0.9999, decay_warmup=False, buffers="average")
    module, watch, _ = watched(ema, Zoo())
    average, live = weights(module), live_of(ema, module)
    expected = slow_twin(watch.steps, lambda _: 0.9999, warmup=False, every=1, start=0)
    moved = {name for name in average if not torch.equal(average[name], live[name])}
    assert {"head.weight", "tied.weight", "scale", "phase", "moving", "body.1.running_mean"} <= moved
    for name in moved:
        torch.testing.assert_close(average[name], expected[name], rtol=1e-5, atol=1e-7)
    for name in ("table", "fixed", "mask", "index", "used", "body.1.num_batches_tracked"):
        assert torch.equal(average[name], live[name]), name
    assert module.tied.weight is module.head.weight
    assert torch.equal(live["mask"], Zoo().mask)


def test_buffers_stay_the_live_ones_unless_asked() -> None:
    ema = EMAWeights(decay=0.9)
    module, _, _ = watched(ema, Zoo())
    average, live = weights(module), live_of(ema, module)
    for name, _ in module.named_buffers():
        if name != "passing":
            assert torch.equal(average[name], live[name]), name


def test_only_what_params_matches_is_averaged() -> None:
    ema = EMAWeights(decay=0.9, params=("body", nn.BatchNorm1d), buffers="average")
    module, _, _ = watched(ema)
    average, live = weights(module), live_of(ema, module)
    changed = {name for name in average if not torch.equal(average[name], live[name])}
    assert changed == {name for name in average if name.startswith("body") and "num_" not in name}


def test_frozen_weights_are_left_alone_and_join_when_they_open() -> None:
    class Open(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.head.requires_grad_(trainer.current_epoch >= 1)

    module = Toy(weight_decay=0.1)
    module.head.requires_grad_(False)
    ema = EMAWeights(decay=0.9, decay_warmup=False)
    module, watch, _ = watched(ema, module, Open())
    expected = slow_twin(watch.steps, lambda _: 0.9, warmup=False, every=1, start=0)
    assert torch.equal(watch.steps[0]["head.weight"], watch.steps[5]["head.weight"])
    torch.testing.assert_close(module.head.weight.detach(), expected["head.weight"])
    torch.testing.assert_close(module.body[0].weight.detach(), expected["body.0.weight"])


def test_frozen_weights_that_user_code_moves_are_shown_as_they_are() -> None:
    class Teacher(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            with torch.no_grad():
                pl_module.head.weight.add_(1.0)

    module = Toy()
    module.head.weight.requires_grad_(False)
    ema = EMAWeights(decay=0.9)
    module, watch, _ = watched(ema, module, Teacher())
    assert torch.equal(module.head.weight, live_of(ema, module)["head.weight"])
    assert torch.equal(watch.seen[-1]["head.weight"], module.head.weight)


def test_bf16_weights_have_a_wider_average_that_no_evaluation_rounds() -> None:
    def after(evaluate: bool) -> tuple[LightningModule, dict[str, Any]]:
        ema = EMAWeights(decay=0.999, evaluate=evaluate)
        module, _, _ = watched(ema, precision="bf16-true", val_check_interval=1)
        return module, ema.saved()["wide"]

    (module, evaluated), (_, untouched) = after(True), after(False)
    assert {value.dtype for value in evaluated.values()} == {torch.float32}
    assert evaluated.keys() == dict(module.named_parameters()).keys()
    assert_equal(evaluated, untouched)
    assert_equal(module.head.weight.detach(), evaluated["head.weight"].bfloat16())
    assert differ(evaluated, {key: value.bfloat16().float() for key, value in evaluated.items()})


def test_a_wider_type_on_request() -> None:
    ema = EMAWeights(decay=0.9, dtype=torch.float64)
    watched(ema)
    assert ema.dtype == "float64"
    assert ema.saved()["wide"]["head.weight"].dtype == torch.float64


def test_compiled_modules_keep_their_clean_names() -> None:
    ema, plain = EMAWeights(decay=0.9, dtype="float64"), EMAWeights(decay=0.9, dtype="float64")
    watched(ema, Compiled())
    watched(plain)
    assert ema.saved()["wide"].keys() == plain.saved()["wide"].keys()
    for name, value in ema.saved()["wide"].items():
        torch.testing.assert_close(value, plain.saved()["wide"][name], rtol=1e-4, atol=1e-5)


def test_lazy_parameters_are_named() -> None:
    module = Toy()
    module.head = nn.LazyLinear(3)
    with pytest.raises(ValueError, match=r"params must be initialised .* lazy 'head.weight'"):
        watched(EMAWeights(), module)


def test_layers_made_in_setup_are_averaged() -> None:
    class Late(Toy):
        def setup(self, stage: str) -> None:
            self.head = nn.Linear(8, 3)

    ema = EMAWeights(decay=0.9)
    module, _, _ = watched(ema, Late())
    assert differ({"": module.head.weight}, {"": live_of(ema, module)["head.weight"]})


def test_configure_model_is_called_once() -> None:
    class Configured(Toy):
        calls = 0

        def configure_model(self) -> None:
            self.calls += 1

    module, _, _ = watched(EMAWeights(decay=0.9), Configured())
    assert module.calls == 1


def test_two_averages_of_the_same_weights_conflict() -> None:
    with pytest.raises(ConflictError, match="'eval_weights' must have one owner"):
        watched(EMAWeights(), None, EMAWeightAveraging())
    with pytest.raises(ConflictError, match=r"EMAWeights and EMAWeights\[slow\]"):
        watched(EMAWeights(), None, EMAWeights(label="slow"))
    watched(EMAWeights(params="body"), None, EMAWeights(label="slow", params="head"))


def test_strategies_that_hide_weights_are_refused() -> None:
    runner = trainer(EMAWeights())
    type(runner.strategy).restore_checkpoint_after_setup = True
    try:
        with pytest.raises(ValueError, match="strategy must be DDP, FSDP or .*, got SingleDeviceStrategy"):
            runner.fit(Toy(), Loader())
    finally:
        del type(runner.strategy).restore_checkpoint_after_setup


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"decay": 1.5}, r"decay must lie in \[0.0, 1.0\], got 1.5"),
        ({"decay": "2 * cosine(to=0.1)"}, "every value of decay must lie in"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"start": 0.5}, "start must be a whole number of steps or text"),
        ({"params": ()}, "params must name at least one pattern"),
        ({"buffers": "average_all"}, "buffers must be one of .* did you mean 'average'"),
        ({"dtype": "float"}, "dtype must be 'float32', 'float64' or None .*, got 'float'"),
        ({"dtype": torch.float16}, r"\(in 16 bits an average stands still\), got torch.float16"),
        ({"device": "gpu"}, "device must name a device of torch, such as 'cpu', got 'gpu'"),
        ({"save": "both"}, "save must be one of 'average', 'live', got 'both'"),
        ({"evaluate": "yes"}, "evaluate must be True or False, got 'yes'"),
        ({"decay_warmup": 1}, "decay_warmup must be True or False, got 1"),
        ({"warmup": True}, "EMAWeights has no setting 'warmup'; did you mean 'decay_warmup'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        EMAWeights(**settings)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "half", "double", "bfloat16", torch.int8, 32])
def test_types_that_are_none_for_averages(dtype: Any) -> None:
    with pytest.raises(ValueError, match=f"dtype must be 'float32', .*, got {re.escape(repr(dtype))}$"):
        EMAWeights(dtype=dtype)


@pytest.mark.parametrize("device", ["cuda:77", "mps:7", "xpu:7", "hpu", "meta"])
def test_a_device_that_is_not_there_is_named_before_anything_begins(device: str) -> None:
    module, ema = Toy(), EMAWeights(device=device)  # which may be written down on another machine
    error = f"device must be one that torch can use on this machine, got '{device}'"
    with pytest.raises(ValueError, match=error):
        watched(ema, module)
    assert_equal(weights(module), weights(Toy()))
    assert "on_save_checkpoint" not in vars(module)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_no_average_can_be_kept_there() -> None:
    with pytest.raises(ValueError, match="device must be one that torch can use on this machine, got 'cuda'"):
        watched(EMAWeights(device="cuda"))


@pytest.mark.parametrize("params", ["haed", "table"])
def test_params_must_match_what_can_be_averaged(params: str) -> None:
    with pytest.raises(ValueError, match="params must match a"):
        watched(EMAWeights(params=params), Zoo())


def test_only_live_weights_without_a_trainer() -> None:
    with pytest.raises(RuntimeError, match="EMAWeights must be added to Trainer"):
        EMAWeights().live_weights()
