"""ProgressiveUnfreeze: what opens when, and what stays as it is to the bit."""

from __future__ import annotations

import inspect

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torch.nn.functional import batch_norm

from lightning_tricks import GradientClip, WarmupCosine
from lightning_tricks.core.conflicts import ConflictError
from lightning_tricks.network.unfreeze import ProgressiveUnfreeze
from tests.network.deep import STAGES, Deep, Watch, fit
from tests.toys import Loader, TwoOptimizers, assert_equal, trainer, weights


@pytest.mark.parametrize(
    ("at", "opened"),
    [
        ("1 epoch", "h " * 5 + "hm " * 5 + "hmb " * 5),
        (4, "h " * 4 + "hm " * 4 + "hmb " * 7),
        ("20%", "h " * 3 + "hm " * 3 + "hmb " * 9),
        ("0.4 epochs", "h " * 2 + "hm " * 2 + "hmb " * 11),
        ([1, "2 epochs"], "h " + "hm " * 9 + "hmb " * 5),
        ([2, 2], "h " * 2 + "hmb " * 13),
        (["2 epochs", 3], "h " * 10 + "hmb " * 5),  # none before the one ahead of it
        (0, "hmb " * 15),
    ],
)
@pytest.mark.parametrize("lr_factor", [1, 0.5])
def test_stages_open_at_their_moments(at, opened, lr_factor):
    watch = Watch()
    fit(Deep(), ProgressiveUnfreeze(stages=STAGES, at=at, lr_factor=lr_factor), watch)
    assert watch.open == opened.split()
    assert ["".join(s for s in "hmb" if s in watch.moved(i)) for i in range(15)] == opened.split()


def test_moments_count_optimizer_steps_and_never_split_an_accumulation():
    watch = Watch()
    unfreeze = ProgressiveUnfreeze(stages=STAGES, at=[1, 4], lr_factor=1)
    fit(Deep(), unfreeze, watch, accumulate_grad_batches=2)
    # Steps end after batches 1, 3, 4 of an epoch.
    assert watch.open == ("h " * 2 + "hm " * 5 + "hmb " * 8).split()


OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in {"Optimizer", "SparseAdam", "Muon"}  # abstract; for sparse gradients; for matrices
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_weights_and_statistics_keep_their_bits(name):
    wanted = {"momentum": 0.9, "weight_decay": 0.1, "lr": 0.01}
    known = inspect.signature(getattr(torch.optim, name)).parameters
    watch = Watch()
    module = Deep(
        optimizer=name, **{key: value for key, value in wanted.items() if key in known and key != "lr"}
    )
    fit(module, ProgressiveUnfreeze(stages=STAGES, lr_factor=1), watch)
    start = watch.before[0]
    for batch in range(10):
        closed = ("body", "mid") if batch < 5 else ("body",)
        for key, value in watch.after[batch].items():
            assert not key.startswith(closed) or torch.equal(value, start[key])
    # Plain SGD without a rate of its own may stay; what is open moves.
    assert watch.moved(12) == {"h", "m", "b"}


def test_frozen_batch_norm_normalises_with_its_running_statistics():
    module = Deep()
    with torch.no_grad():
        module.body[1].running_mean += 3.0
    seen = []

    def look(layer, inputs, output):
        expected = batch_norm(inputs[0], layer.running_mean, layer.running_var, layer.weight, layer.bias)
        seen.append(torch.equal(output, expected))

    hook = module.body[1].register_forward_hook(look)
    trainer(ProgressiveUnfreeze(stages=["head", ("mid", "body")]), max_epochs=2).fit(module, Loader())
    hook.remove()
    assert seen == [True] * 5 + [False] * 5


def test_dropout_of_frozen_parts_stays_on_and_modes_survive_validation():
    class Careless(Deep):
        def on_validation_model_train(self):
            self.train()  # overrides what Lightning would restore

        def on_train_epoch_start(self):
            self.train()

    for kind in (Deep, Careless):
        module, watch = kind(), Watch()
        dropout = []
        module.body[3].register_forward_pre_hook(lambda layer, _, seen=dropout: seen.append(layer.training))
        fit(module, ProgressiveUnfreeze(stages=STAGES), watch, val_check_interval=2, num_sanity_val_steps=1)
        assert watch.modes == [[False, False]] * 5 + [[False, True]] * 5 + [[True, True]] * 5
        assert dropout.count(True) == 15


def test_statistics_may_be_told_to_move():
    watch = Watch()
    fit(Deep(), ProgressiveUnfreeze(stages=STAGES, norm_stats="train"), watch)
    first, last = watch.before[0], watch.after[4]
    assert {key for key, value in last.items() if not torch.equal(value, first[key])} == {
        "head.weight", "head.bias",
        *(f"{norm}.{stat}" for norm in ("body.1", "mid.1")
          for stat in ("running_mean", "running_var", "num_batches_tracked")),
    }  # fmt: skip


def test_rates_by_stage():
    runner = fit(Deep(lr=0.8), ProgressiveUnfreeze(stages=STAGES, lr_factor=0.5))
    assert [(g["lr"], g["initial_lr"]) for g in runner.optimizers[0].param_groups] == [
        (0.8, 0.8), (0.4, 0.4), (0.2, 0.2),
    ]  # fmt: skip
    assert [len(group["params"]) for group in runner.optimizers[0].param_groups] == [2, 2, 4]


def test_default_factor_is_that_of_the_paper():
    assert ProgressiveUnfreeze(stages=["*"]).lr_factor * 2.6 == 1.0


def test_schedules_multiply_the_rates_of_stages_in_either_order():
    rates = []
    for swap in (False, True):
        techniques = [ProgressiveUnfreeze(stages=STAGES, lr_factor=0.5), WarmupCosine(warmup=0, final=0.1)]
        runner = fit(Deep(lr=0.8), *techniques[:: -1 if swap else 1])
        rates.append([group["lr"] for group in runner.optimizers[0].param_groups])
    assert rates[0] == pytest.approx([0.08, 0.04, 0.02])
    assert rates[0] == rates[1]


SCHEDULERS = {
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=16),
    "CosineAnnealingWarmRestarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "LinearLR": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=9),
}


class Scheduled(Deep):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [{"scheduler": SCHEDULERS[self.name](optimizer), "interval": "step"}]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_own_schedulers_go_on_through_openings_12141_8720(name):
    plain = fit(Scheduled(name)).optimizers[0].param_groups[0]["lr"]
    watch = Watch()
    runner = fit(Scheduled(name), ProgressiveUnfreeze(stages=STAGES, lr_factor=1), watch)
    assert [group["lr"] for group in runner.optimizers[0].param_groups] == [plain]
    assert watch.open[-1] == "hmb"
    with pytest.raises(
        ConflictError, match="lr_factor must be 1 with a scheduler of Scheduled.configure_opt"
    ):
        fit(Scheduled(name), ProgressiveUnfreeze(stages=STAGES))


def test_equal_values_are_not_taken_for_one_parameter():
    # Lightning's ``filter_on_optimizer`` compares values, so that fresh layers of one shape were left out.
    module = Deep()
    module.body[1], module.mid[1] = nn.LayerNorm(8), nn.LayerNorm(8)
    before = weights(module)
    fit(module, ProgressiveUnfreeze(stages=STAGES))
    assert all(not torch.equal(value, before[key]) for key, value in weights(module).items())


def test_what_the_user_froze_opens_with_its_stage_or_never(capsys):
    module = Deep()
    module.mid.requires_grad_(False)
    module.body.requires_grad_(False)
    watch = Watch()
    fit(module, ProgressiveUnfreeze(stages=["head", "mid"]), watch)
    assert watch.open == ["h"] * 5 + ["hm"] * 10
    assert all(watch.moved(i) <= {"h", "m"} for i in range(15))  # nor do the statistics of the body move
    assert [p.requires_grad for p in module.parameters()] == [False] * 4 + [True] * 2 + [False] * 2
    assert "frozen, in no stage" in capsys.readouterr().out


def test_parameters_in_no_optimizer_are_an_error():
    class HeadOnly(Deep):
        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    class Nothing(Deep):
        def configure_optimizers(self):
            return None

    with pytest.raises(ValueError, match="in an optimizer, got none for 'mid.0.weight', 'mid.0.bias', 'body"):
        fit(HeadOnly(), ProgressiveUnfreeze(stages=STAGES))
    with (
        pytest.raises(ValueError, match="in an optimizer, got none for 'head.weight'"),
        pytest.warns(UserWarning),
    ):
        fit(Nothing(), ProgressiveUnfreeze(stages=STAGES))


def test_other_owners_are_refused():
    backed = Deep()
    backed.backbone = backed.body
    with pytest.raises(
        ConflictError, match="'requires_grad' must have one owner, got BackboneFinetuning and"
    ):
        fit(backed, BackboneFinetuning(), ProgressiveUnfreeze(stages=STAGES, lr_factor=1))
    two = [ProgressiveUnfreeze(stages=STAGES, label=label) for label in "ab"]
    module = Deep()
    with pytest.raises(ConflictError, match=r"got ProgressiveUnfreeze\[a\] and ProgressiveUnfreeze\[b\]"):
        fit(module, *two)
    assert all(p.requires_grad for p in module.parameters())


def test_neutral_settings_change_no_bit():
    plain = Deep()
    fit(plain)
    for neutral in ({"stages": ["*"]}, {"stages": STAGES, "at": 0, "lr_factor": 1}):
        module = Deep()
        fit(module, ProgressiveUnfreeze(**neutral))
        assert_equal(weights(plain), weights(module))


def test_clipping_beside_it_sees_open_gradients_only():
    clip = GradientClip(max_norm=0.1)
    watch = Watch()
    fit(Deep(), clip, ProgressiveUnfreeze(stages=STAGES), watch)
    assert watch.open[-1] == "hmb"


def test_two_optimizers_are_both_split():
    runner = fit(TwoOptimizers(), ProgressiveUnfreeze(stages=["head", "body"], lr_factor=0.5))
    assert [[group["lr"] for group in o.param_groups] for o in runner.optimizers] == [[0.025], [0.05]]
