"""Dropout that follows a schedule: which layers, when, and that each gets its own back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

import lightning_tricks as lt
from lightning_tricks.network.dropouts import dropout_layers, rate_of, set_rate_
from tests.toys import Loader, Logged, StopAfter, StopError, Toy, assert_equal, trainer, weights

VALIDATION = Loader(2, seed=9, fixed=True)


class DropPath(nn.Module):
    """As timm writes it."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob


class StochasticDepth(nn.Module):
    """As torchvision writes it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p


KINDS: dict[str, nn.Module] = {
    "dropout": nn.Dropout(0.1),
    "channels": nn.Dropout2d(0.1),
    "alpha": nn.AlphaDropout(0.1),
    "feature_alpha": nn.FeatureAlphaDropout(0.1),
    "attention": nn.MultiheadAttention(4, 2, dropout=0.1),
    "lstm": nn.LSTM(4, 4, num_layers=2, dropout=0.1),
    "path": DropPath(0.1),
    "depth": StochasticDepth(0.1),
}


def test_all_kinds_are_found_and_driven():
    net = nn.ModuleDict({**KINDS, "one layer": nn.GRU(4, 4), "linear": nn.Linear(4, 4)})
    found = dropout_layers(net, "*")
    assert list(found) == list(KINDS)
    for layer in found.values():
        assert rate_of(layer) == 0.1
        set_rate_(layer, 0.9)
    torch.manual_seed(0)
    x = torch.ones(1000, 4)
    assert (found["dropout"](x) == 0).float().mean().item() == pytest.approx(0.9, abs=0.02)
    _, attention = found["attention"](*[x[:, None]] * 3)
    # The mean over two heads is 0 where both are.
    assert (attention == 0).float().mean().item() == pytest.approx(0.81, abs=0.02)
    inner, _ = found["lstm"](x[:, None])
    assert not torch.equal(inner, found["lstm"](x[:, None])[0])
    assert found["path"].drop_prob == found["depth"].p == 0.9


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("layers.1", ["layers.1.self_attn", "layers.1.dropout", "layers.1.dropout1", "layers.1.dropout2"]),
        ("*.self_attn", ["layers.0.self_attn", "layers.1.self_attn"]),
        (nn.MultiheadAttention, ["layers.0.self_attn", "layers.1.self_attn"]),
        (("layers.0.dropout", "layers.1.dropout"), ["layers.0.dropout", "layers.1.dropout"]),
        (lambda name, layer: name.endswith("dropout2"), ["layers.0.dropout2", "layers.1.dropout2"]),
    ],
)
def test_layers_are_chosen_as_weights_are(pattern, names):
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)
    assert list(dropout_layers(net, pattern)) == names
    wrapped = nn.ModuleDict({"net": torch.compile(net, backend="aot_eager")})
    if isinstance(pattern, type):
        assert list(dropout_layers(wrapped, pattern)) == [f"net.{name}" for name in names]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("head", r"params must match a dropout layer, got 'head', which matches none; nearest: .*'body.3'"),
        ("body.2", "nearest: 'body.3', 'body'"),
        ("body.3.p", "nearest: 'body.3'"),
    ],
)
def test_a_pattern_without_a_dropout_layer_is_an_error(pattern, words):
    with pytest.raises(ValueError, match=words):
        trainer(lt.DropoutSchedule(schedule=0.5, params=pattern)).fit(Toy(), Loader())


def test_a_module_without_dropout_is_an_error():
    module = Toy()
    module.body[3] = nn.Identity()
    with pytest.raises(ValueError, match="must match a dropout layer, got .*, but Toy has none"):
        trainer(lt.DropoutSchedule(schedule=0.5)).fit(module, Loader())


@pytest.mark.parametrize("schedule", [1.0, -0.1, "linear(to=1.0)", "constant(1.5)", "cosine(to=0.0)"])
def test_probabilities_lie_below_one(schedule):
    with pytest.raises(ValueError, match="schedule must lie in|every value of schedule"):
        lt.DropoutSchedule(schedule=schedule)


class Seen(Callback):
    """Notes the probability in each training batch."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.rates.append(pl_module.body[3].p)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant(0.4, over='1 epoch') >> constant(0.0)", [0.4] * 5 + [0.0] * 10),  # early
        ("constant(0.0, over='2 epochs') >> constant(0.3)", [0.0] * 10 + [0.3] * 5),  # late
        ("linear(to=0.3, start=0.0)", [0.02 * step for step in range(15)]),  # curriculum
        (0.5, [0.5] * 15),
    ],
)
def test_the_value_is_the_probability(schedule, expected):
    seen, logged = Seen(), Logged("dropout_schedule")
    module = Toy()
    trainer(lt.DropoutSchedule(schedule=schedule), seen, logged).fit(module, Loader(), VALIDATION)
    assert seen.rates == pytest.approx(expected)
    assert logged.column("p") == pytest.approx(expected)
    assert module.body[3].p == 0.2  # its own again


def test_batches_of_an_accumulation_have_one_probability():
    seen = Seen()
    schedule = lt.DropoutSchedule(schedule="linear(to=0.9, start=0.0, over=3)")
    trainer(schedule, seen, accumulate_grad_batches=2, max_epochs=1).fit(Toy(), Loader())
    assert seen.rates == pytest.approx([0.0, 0.0, 0.3, 0.3, 0.6])


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end"])
def test_each_layer_gets_its_own_back_after_an_error_and_a_resumed_run_goes_on(hook, tmp_path):
    schedule = "linear(to=0.8, start=0.0)"
    whole = Toy()
    trainer(lt.DropoutSchedule(schedule=schedule)).fit(whole, Loader(), VALIDATION)
    broken, saved = Toy(), tmp_path / "a.ckpt"
    count = 7 if hook == "on_train_batch_end" else 1
    with pytest.raises(StopError):
        trainer(lt.DropoutSchedule(schedule=schedule), StopAfter(count, saved, hook)).fit(
            broken, Loader(), VALIDATION
        )
    assert broken.body[3].p == 0.2
    parts = Toy()
    trainer(lt.DropoutSchedule(schedule=schedule)).fit(parts, Loader(), VALIDATION, ckpt_path=saved)
    assert_equal(weights(whole), weights(parts))


def test_each_of_two_drives_its_own_and_not_one_layer_both():
    module = Toy()
    module.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))
    body = lt.DropoutSchedule(schedule=0.1, params="body", label="body")
    head = lt.DropoutSchedule(schedule=0.3, params="head", label="head")
    logged = Logged("head/dropout_schedule")
    trainer(body, head, logged, max_epochs=1).fit(module, Loader())
    assert logged.column("p") == pytest.approx([0.3] * 5)
    both = lt.DropoutSchedule(schedule=0.3, label="both")
    with pytest.raises(lt.ConflictError, match="'dropout' must have one owner"):
        trainer(body, both).fit(Toy(), Loader())


def test_a_compiled_part_drops_as_the_schedule_says():
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(x)

    part = torch.compile(Part(), backend="aot_eager")
    x = torch.ones(20000)
    for index in range(12):  # past the versions that torch compiles
        (layer,) = dropout_layers(nn.Sequential(part), "*").values()
        set_rate_(layer, index / 20)
        assert (part(x) == 0).float().mean().item() == pytest.approx(index / 20, abs=0.02)
