"""Weight decay: equal to that of torch's optimizers, only where a step happens, and on the right weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_tricks import (
    ConflictError,
    EMAWeights,
    GradientClip,
    Lookahead,
    ProgressiveUnfreeze,
    WeightDecay,
)
from lightning_tricks.core.exempt import exempt_from_decay
from lightning_tricks.updates.decay import decay_
from tests.contract.test_together import reads_per_step
from tests.toys import Loader, Toy, TwoOptimizers, assert_equal, scaler_plugin, trainer, weights

SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16-true": {"precision": "bf16-true"},
    "accumulation": {"accumulate_grad_batches": 2},
}


def trained(module: Toy, *callbacks: Callback, **settings: Any) -> Any:
    runner = trainer(*callbacks, **settings)
    runner.fit(module, Loader())
    return weights(module), runner.optimizers[0].state_dict()["state"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("settings", [*SETTINGS.values(), "scaler"], ids=[*SETTINGS, "16-mixed"])
def test_decoupled_decay_is_that_of_adamw_to_the_bit(settings: Any, fused: bool) -> None:
    if fused and "precision" in settings:
        pytest.skip(
            "in low precision a fused step rounds decay and step at once, which nothing beside it can"
        )

    def given() -> dict[str, Any]:
        return {"plugins": [scaler_plugin()]} if settings == "scaler" else settings

    theirs = trained(Toy(fused=fused, weight_decay=0.3), **given())
    ours = trained(Toy(optimizer="Adam", fused=fused), WeightDecay(strength=0.3, params="*"), **given())
    assert_equal(theirs, ours)


@pytest.mark.parametrize("options", [{}, {"maximize": True}], ids=["down", "up"])
@pytest.mark.parametrize("optimizer", ["SGD", "RMSprop", "Adagrad"])
@pytest.mark.filterwarnings("ignore:WeightDecay. RMSprop", "ignore:WeightDecay. Adagrad")
def test_the_penalty_is_that_of_torchs_optimizers_to_the_bit(optimizer: str, options: dict[str, Any]) -> None:
    theirs = trained(Toy(optimizer=optimizer, lr=0.01, weight_decay=0.3, **options))
    ours = trained(
        Toy(optimizer=optimizer, lr=0.01, **options), WeightDecay(strength=0.3, form="l2", params="*")
    )
    assert_equal(theirs, ours)


def test_by_hand_one_step_of_sgd_on_a_known_gradient() -> None:
    class One(Toy):
        def __init__(self) -> None:
            super().__init__(lr=0.1, optimizer="SGD")
            self.body, self.head = nn.Sequential(), nn.Linear(4, 3)
            nn.init.constant_(self.head.weight, 2.0)
            nn.init.constant_(self.head.bias, 2.0)

        def loss(self, batch: Any) -> torch.Tensor:
            return self.head.weight.sum() + self.head.bias.sum()

    module = One()
    trainer(WeightDecay(strength=0.5), max_epochs=1).fit(module, Loader(1))
    # 2 (1 - 0.1 * 0.5) - 0.1; the bias only steps.
    assert module.head.weight.unique().item() == pytest.approx(1.8)
    assert module.head.bias.unique().item() == pytest.approx(1.9)


def test_a_scheduled_strength_follows_the_steps() -> None:
    # 1 until step 10 of 15, 0 after it.
    halves = WeightDecay(strength="0.3 * multistep([10], gamma=1e-30)", params="*")

    class Half(Toy):
        def on_train_batch_start(self, *_: Any) -> None:
            for group in self.trainer.optimizers[0].param_groups:
                group["weight_decay"] = 0.3 if self.global_step < 10 else 0.0

    assert_equal(trained(Half()), trained(Toy(optimizer="Adam"), halves))


class Overflows(Toy):
    """The gradient of one step is not finite."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * (math.inf if self.trainer.fit_loop.epoch_loop.total_batch_idx == 7 else 1.0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_cancelled_step_decays_nothing(fused: bool, scaled: bool) -> None:
    def settings() -> dict[str, Any]:
        return {"plugins": [scaler_plugin()]} if scaled else {}

    skip = [] if scaled else [GradientClip(max_norm=1e9, non_finite="skip")]
    theirs = trained(Overflows(fused=fused, weight_decay=0.3), *skip, **settings())
    decay = WeightDecay(strength=0.3, params="*")
    ours = trained(Overflows(optimizer="Adam", fused=fused), *skip, decay, **settings())
    assert_equal(theirs, ours)
    assert all(value.isfinite().all() for value in ours[0].values())


def test_frozen_weights_do_not_decay() -> None:
    def stages() -> ProgressiveUnfreeze:
        return ProgressiveUnfreeze(stages=["head", "body"], at=8)

    theirs = trained(Toy(weight_decay=0.3), stages())
    assert_equal(theirs, trained(Toy(optimizer="Adam"), stages(), WeightDecay(strength=0.3, params="*")))


@pytest.mark.parametrize("average", [lambda: EMAWeights(decay=0.9), lambda: Lookahead(k=4)])
def test_what_opens_late_is_averaged_from_before_it_decays(average: Any) -> None:
    results = []
    for place in (1, 2):
        techniques = [ProgressiveUnfreeze(stages=["head", "body"], at=8), WeightDecay(strength=0.9)]
        techniques.insert(place, average())
        results.append(trained(Toy(optimizer="SGD"), *techniques)[0])
    assert_equal(*results)


def test_decay_in_low_precision_is_rounded_once() -> None:
    # In bfloat16, 1 - 6e-3 alone would be 0.9922 and 3 times it 2.9688; 3 * 0.994 = 2.982 is 2.9844.
    values = torch.tensor([3.0, 1000.0], dtype=torch.bfloat16)
    for unless in (None, torch.tensor(False)):
        found = values.clone()
        decay_([found], factor=1 - 6e-3, unless=unless)
        assert torch.equal(found, (values.double() * (1 - 6e-3)).bfloat16())
    decay_([values], factor=0.0, unless=torch.tensor(True))
    assert values.tolist() == [3.0, 1000.0]


def test_by_default_biases_normalisation_and_embeddings_are_left_alone() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 4)
            self.conv = nn.Conv2d(1, 1, 1)
            self.norms = nn.ModuleList([nn.LayerNorm((4, 4)), nn.GroupNorm(1, 4), nn.BatchNorm2d(4)])
            self.attention = nn.MultiheadAttention(4, 1, add_bias_kv=True)
            self.scale = nn.Parameter(torch.ones(4, 1, 1))
            self.token = nn.Parameter(torch.zeros(1, 1, 4))
            self.temperature = nn.Parameter(torch.ones(()))
            self.positions = nn.Parameter(torch.zeros(1, 7, 4))
            self.out = nn.Linear(4, 1)
            self.tied = nn.Linear(4, 5)
            self.tied.weight = self.words.weight

    module = Parts()
    exempt = exempt_from_decay(module)
    decays = [name for name, parameter in module.named_parameters() if parameter not in exempt]
    assert decays == [
        "positions",
        "conv.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "out.weight",
    ]


def test_an_optimizer_that_decays_by_itself_is_a_conflict() -> None:
    expected = (
        r"'weight_decay' must have one owner, got WeightDecay and AdamW\(weight_decay=0.01\): remove "
        r"WeightDecay, or pass weight_decay=0.0 to AdamW"
    )
    with pytest.raises(ConflictError, match=expected):
        trained(Toy(), WeightDecay())


def test_each_form_has_its_place_in_the_list() -> None:
    clip = GradientClip(max_norm=1.0)
    with pytest.raises(ConflictError, match="in the order GradientClip, WeightDecay; got"):
        trained(Toy(optimizer="SGD"), WeightDecay(), clip)
    with pytest.raises(ConflictError, match="in the order WeightDecay, GradientClip; got"):
        trained(Toy(optimizer="SGD"), clip, WeightDecay(form="l2"))


def test_a_penalty_under_an_adaptive_optimizer_warns_and_says_why() -> None:
    expected = "WeightDecay: Adam divides a penalty's gradient by .*: use form='decoupled'"
    with pytest.warns(UserWarning, match=expected):
        trained(Toy(optimizer="Adam"), WeightDecay(form="l2"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"strength": -1.0}, "strength must lie in"),
        ({"form": "L2"}, "form must be one of 'decoupled', 'l2', got 'L2'"),
        ({"params": ()}, "params must name at least one pattern"),
    ],
)
def test_bad_settings(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        WeightDecay(**settings)


def test_modules_and_optimizers_that_cannot() -> None:
    class Flat(Toy):
        def __init__(self) -> None:
            super().__init__(optimizer="SGD")
            self.body, self.head = nn.Sequential(), nn.LayerNorm(4)

    with pytest.raises(ValueError, match="params must be given, got None, but the module has only biases"):
        trained(Flat(), WeightDecay())
    with pytest.raises(ValueError, match="must step once per gradient to decay beside it, got LBFGS"):
        trained(Toy(optimizer="LBFGS"), WeightDecay())


def test_logs_the_strength_for_each_optimizer(tmp_path: Path) -> None:
    module = TwoOptimizers()
    module.options = {"weight_decay": 0.0}
    runner = trainer(WeightDecay(strength="0.3 * linear(to=0)"), logger=True, default_root_dir=tmp_path)
    runner.fit(module, Loader())
    last = {name: value.item() for name, value in runner.logged_metrics.items()}
    assert last == {f"weight_decay/strength/{index}": pytest.approx(0.3 / 15) for index in (0, 1)}


@pytest.mark.parametrize("fused", [True, False])
def test_nothing_is_read_back(fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        Toy, "configure_optimizers", lambda self: torch.optim.Adam(self.parameters(), fused=fused)
    )
    decay = WeightDecay(strength=0.1)
    assert reads_per_step(decay, fused=fused) == reads_per_step(fused=fused)
