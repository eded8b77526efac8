"""The mixin: groups against those of timm's rules by hand, equality with optimizers built by hand, errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.tuner import Tuner

import lightning_tricks as lt
from lightning_tricks import OptimizerMixin, OptimizerSettings
from tests.contract.test_laws import STOPS
from tests.toys import Loader, StopAfter, StopError, Toy, TwoOptimizers, assert_equal, trainer, weights
from tests.yaml_trainer import yaml_module

Settings = OptimizerSettings | Sequence[OptimizerSettings]


class Mixed(OptimizerMixin, Toy):
    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__()
        if settings is not None:
            self.optimizer_settings = settings
        self.save_hyperparameters(logger=False)


class MixedManual(OptimizerMixin, TwoOptimizers):
    optimizer_settings = (
        OptimizerSettings("SGD", lr=0.05, options={"momentum": 0.9}, params="head"),
        OptimizerSettings("AdamW", lr=0.05, weight_decay=0.1),
    )


# For matrices only; torch has it since 2.9.
MUON = "Muon" if hasattr(torch.optim, "Muon") else "RMSprop"
MATRICES = (
    OptimizerSettings("AdamW", lr=0.05, params="head"),
    OptimizerSettings(MUON, lr=0.05, params="*" if MUON == "Muon" else "body.0.weight"),
    OptimizerSettings("AdamW", lr=0.01),
)
RICH = OptimizerSettings(
    "AdamW",
    lr=0.05,
    weight_decay=0.1,
    options={"betas": (0.8, 0.9)},
    layer_decay=0.5,
    overrides={"head": {"lr": 0.01}, "body.0.bias": {"weight_decay": 0.2}},
)


@pytest.mark.parametrize("stop", STOPS, ids=str)
@pytest.mark.parametrize("build", [lambda: Mixed(RICH), lambda: Mixed(MATRICES), MixedManual])
def test_a_resumed_run_equals_an_uninterrupted_one(build: Any, stop: Any, tmp_path: Path) -> None:
    whole = build()
    trainer(lt.WarmupCosine()).fit(whole, Loader(), Loader(2, seed=9, fixed=True))
    saved = tmp_path / "stopped.ckpt"
    with pytest.raises(StopError):
        stopper = StopAfter(stop[1], saved, stop[0])
        trainer(lt.WarmupCosine(), stopper).fit(build(), Loader(), Loader(2, seed=9, fixed=True))
    resumed = build()
    runner = trainer(lt.WarmupCosine())
    runner.fit(resumed, Loader(), Loader(2, seed=9, fixed=True), ckpt_path=saved)
    assert_equal(weights(whole), weights(resumed))


def test_hyperparameters_with_settings_load_safely(tmp_path: Path) -> None:
    runner = trainer(max_epochs=1)
    runner.fit(Mixed(RICH), Loader())
    runner.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert Mixed.load_from_checkpoint(tmp_path / "a.ckpt").optimizer_settings == RICH


def test_several_optimizers_as_one_equal_each_alone() -> None:
    combined, alone = Mixed(MATRICES), Mixed(MATRICES)
    alone.configure_optimizers = lambda: None
    trainer(max_epochs=2).fit(combined, Loader())
    named = dict(alone.named_parameters())
    assert torch.equal(named["body.0.weight"], Mixed(MATRICES).body[0].weight)
    rest = [p for name, p in named.items() if name.startswith("body") and name != "body.0.weight"]
    optimizers = [
        torch.optim.AdamW(
            [{"params": [alone.head.weight]}, {"params": [alone.head.bias], "weight_decay": 0}], lr=0.05
        ),
        getattr(torch.optim, MUON)([alone.body[0].weight], lr=0.05),
        torch.optim.AdamW(rest, lr=0.01, weight_decay=0.0),
    ]
    for epoch in range(2):
        loader = Loader()
        loader.set_epoch(epoch)
        for index, batch in enumerate(loader):
            torch.manual_seed(1000 * epoch + index)
            for each in optimizers:
                each.zero_grad()
            alone.loss(batch).backward()
            for each in optimizers:
                each.step()
    assert_equal(weights(combined), weights(alone))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_a_copy_of_several_optimizers_steps_on(copied: Any) -> None:
    module = Mixed(MATRICES)
    optimizer = module.configure_optimizers()
    module.loss(next(iter(Loader()))).backward()
    optimizer.step()
    optimizer.zero_grad()
    results = []
    for own, stepped in (copied((module, optimizer)), (module, optimizer)):
        torch.manual_seed(0)
        own.loss(next(iter(Loader()))).backward()
        stepped.step()
        results.append(weights(own))
    assert_equal(*results)


def test_techniques_split_and_drive_the_groups() -> None:
    module = Mixed(MATRICES)
    unfreeze = lt.ProgressiveUnfreeze(stages=["head", "body"], at="1 epoch", lr_factor=0.5)
    runner = trainer(unfreeze, lt.WarmupCosine(warmup=0, final=0.1), lt.GradientClip(max_norm=1.0))
    runner.fit(module, Loader())
    names = [group["name"] for group in runner.optimizers[0].param_groups]
    assert names == [
        "0 AdamW, weights",
        "0 AdamW, no decay",
        f"1 {MUON}",
        "2 AdamW",
    ]
    rates = [group["lr"] for group in runner.optimizers[0].param_groups]
    assert rates == pytest.approx([0.005, 0.005, 0.0025, 0.0005], rel=1e-6)


def test_the_table_is_what_is_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(max_epochs=1).fit(Mixed(RICH), Loader())
    title, *table = capsys.readouterr().out.splitlines()
    assert title == "Mixed: AdamW(betas=(0.8, 0.9), eps=1e-08, amsgrad=False)"
    # AdamW keeps two numbers of 4 bytes for each, and 4 bytes of a count for each tensor.
    assert [
        ", ".join(entry for entry in line.replace(" ", "").split("|") if entry) for line in table[2:]
    ] == [
        "layer0,body.0.bias, body.0.bias, 1, 8, 0.025, 0.2, 68B",
        "layer0, body.0,body.1:weights, 1, 32, 0.025, 0.1, 260B",
        "layer0,nodecay, body.0,body.1:biases,norms,, 2, 16, 0.025, 0, 136B",
        "embeddings",
        "layer1,head, head:weights, 1, 24, 0.01, 0.1, 196B",
        "layer1,head,nodecay, head:biases,norms,embeddings, 1, 3, 0.01, 0, 28B",
    ]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*lr_find")
def test_a_search_for_the_rate_finds_it_or_is_refused(tmp_path: Path) -> None:
    module = Mixed(OptimizerSettings("SGD", lr=0.1))
    runner = trainer(max_epochs=1, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="attr_name of LearningRateFinder must be 'found_lr'"):
        Tuner(runner).lr_find(module, Loader(), num_training=5, attr_name="lr")
    runner = trainer(max_epochs=1, default_root_dir=tmp_path)
    Tuner(runner).lr_find(module, Loader(40), num_training=30, attr_name="found_lr")
    assert module.found_lr not in (None, 0.1)
    runner.fit(module, Loader())
    assert runner.optimizers[0].param_groups[0]["lr"] == module.found_lr


def test_penalties_see_through_several_optimizers() -> None:
    several = [OptimizerSettings("SGD", lr=0.05, params="head"), OptimizerSettings("Adam", lr=0.05)]
    with pytest.warns(UserWarning, match="WeightDecay: Adam divides"):
        trainer(lt.WeightDecay(form="l2")).fit(Mixed(several), Loader())
    module = Mixed(several)
    trainer(lt.NormPenalty(l1=0.05, proximal=True), max_epochs=20).fit(module, Loader())
    assert (module.body[0].weight == 0).any()
    with pytest.raises(lt.ConflictError, match=r"pass weight_decay=0.0 to AdamW"):
        trainer(lt.WeightDecay()).fit(Mixed(MATRICES), Loader())


def test_the_card_is_complete() -> None:
    headings = ("When", "Changes", "Logs", "Saves", "Cost", "Use")
    assert all(f"* **{heading}**" in str(OptimizerMixin.__doc__) for heading in headings)


class FromYAML(OptimizerMixin, Toy):
    def __init__(self, optimizer_settings: OptimizerSettings | list[OptimizerSettings]) -> None:
        super().__init__()
        self.optimizer_settings = optimizer_settings


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            {"optimizer": "SGD", "lr": 0.1, "options": {"momentum": 0.9}, "overrides": {"head": {"lr": 1.0}}},
            OptimizerSettings("SGD", lr=0.1, options={"momentum": 0.9}, overrides={"head": {"lr": 1.0}}),
        ),
        (
            [
                {"params": "head"},
                {"optimizer": "torch.optim.Adam", "layer_decay": 0.5, "layers": ["body"]},
            ],
            [
                OptimizerSettings(params="head"),
                OptimizerSettings("torch.optim.Adam", layer_decay=0.5, layers=["body"]),
            ],
        ),
    ],
)
def test_settings_from_yaml(written: Any, expected: Any) -> None:
    config = {"model": {"optimizer_settings": written}, "trainer": {"logger": False}}
    assert yaml_module(config, FromYAML).optimizer_settings == expected


def test_schedule_free_needs_its_callback_and_stands_alone() -> None:
    free = OptimizerSettings("AdamWScheduleFree", lr=0.05, options={"warmup_steps": 3})
    with pytest.raises(ValueError, match=r"AdamWScheduleFree must be switched .*: add ScheduleFree\(\)"):
        trainer().fit(Mixed(free), Loader())
    with pytest.raises(ValueError, match="must be the only optimizer in automatic optimization, got 2"):
        trainer(lt.ScheduleFree()).fit(Mixed([OptimizerSettings(params="head"), free]), Loader())
    module = Mixed(free)
    before = weights(module)
    trainer(lt.ScheduleFree()).fit(module, Loader())
    assert not torch.equal(module.head.weight, before["head.weight"])
