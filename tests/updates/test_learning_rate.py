"""One callback that drives rates by any schedule, with several of them each its own parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

import lightning_tricks as lt
from lightning_tricks import LearningRate, WarmupCosine
from tests.toys import Loader, StopAfter, StopError, Toy, TwoOptimizers, assert_equal, trainer, weights
from tests.updates.test_warmup_cosine import used

WARM_STEPS = "warmup(1) >> step(every='1 epoch', gamma=0.5)"


class Named(Callback):
    """Collects the rate of each parameter that each optimizer step really uses."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []
        self._step: dict[str, float] = {}

    def on_train_batch_start(self, *_: Any) -> None:
        self._step = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        for group in optimizer.param_groups:
            self._step |= {names[p]: float(group["lr"]) for p in group["params"]}

    def on_train_batch_end(self, *_: Any) -> None:
        if self._step:
            self.seen.append(self._step)

    def of(self, name: str) -> list[float]:
        return [step[name] for step in self.seen]


def named(*techniques: Callback, module: Toy | None = None, **settings: Any) -> Named:
    rates = Named()
    trainer(*techniques, rates, **settings).fit(module or Toy(lr=1.0), Loader())
    return rates


def test_each_steps_rate_against_a_table_by_hand() -> None:
    rates = used(LearningRate(schedule=WARM_STEPS))
    assert rates == [0.5, *[1.0] * 5, *[0.5] * 5, *[0.25] * 4, 0.25]


@pytest.mark.parametrize("settings", [{"warmup": 2, "final": 0.1}, {"warmup": "40%", "shape": "exponential"}])
def test_warmup_cosine_is_its_short_name(settings: dict[str, Any]) -> None:
    over, final = settings["warmup"], settings.get("final", 0.0)
    schedule = lt.warmup(over, shape=settings.get("shape", "linear")) >> lt.cosine(to=final)
    assert used(LearningRate(schedule=schedule)) == used(WarmupCosine(**settings))


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("step(every=4, gamma=0.5)", lambda o: torch.optim.lr_scheduler.StepLR(o, 4, 0.5)),
        ("cosine(to=0.1)", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 15, eta_min=0.1)),
    ],
)
def test_weights_are_those_of_torchs_scheduler(schedule: str, theirs: Any) -> None:
    class WithScheduler(Toy):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": theirs(optimizer), "interval": "step"}]

    module, expected = Toy(lr=1.0), WithScheduler(lr=1.0)
    trainer(LearningRate(schedule=schedule)).fit(module, Loader())
    trainer().fit(expected, Loader())
    for name, value in weights(expected).items():
        torch.testing.assert_close(weights(module)[name], value, rtol=1e-4, atol=1e-4)


def test_different_parts_follow_different_schedules() -> None:
    rates = named(
        LearningRate(schedule="linear(to=0.0)", params="head"),
        LearningRate(schedule=WARM_STEPS, params="body.0", label="body"),
    )
    assert rates.of("head.weight") == pytest.approx([1 - at / 15 for at in range(15)])
    assert rates.of("body.0.bias") == [0.5, *[1.0] * 5, *[0.5] * 5, *[0.25] * 4]
    assert rates.of("body.1.weight") == [1.0] * 15  # in neither


def test_a_group_that_mixes_is_split_and_keeps_its_options() -> None:
    class Options(Toy):
        def configure_optimizers(self) -> Any:
            groups = [{"params": list(self.parameters()), "lr": 0.5, "weight_decay": 0.25, "name": "all"}]
            return torch.optim.AdamW(groups, lr=1.0)

    runner = trainer(LearningRate(schedule="cosine(to=0.5)", params="head"))
    runner.fit(module := Options(), Loader())
    body, head = runner.optimizers[0].param_groups
    assert [p.shape for p in head["params"]] == [p.shape for p in module.head.parameters()]
    assert len(body["params"]) == 4
    assert (body["lr"], head["lr"]) == (0.5, 0.25)
    assert (body["weight_decay"], head["weight_decay"]) == (0.25, 0.25)
    assert (body["name"], head["name"]) == ("all/not LearningRate", "all/LearningRate")


def test_a_group_that_does_not_mix_stays_as_it_is() -> None:
    class Groups(Toy):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(
                [{"params": self.body.parameters()}, {"params": self.head.parameters()}], 1.0
            )

    for params in ("*", "head", ("head", "body")):
        runner = trainer(LearningRate(schedule=0.5, params=params), max_epochs=1)
        runner.fit(Groups(), Loader())
        body = 1.0 if params == "head" else 0.5
        assert [group["lr"] for group in runner.optimizers[0].param_groups] == [body, 0.5]


def test_manual_optimization_with_an_optimizer_for_each_part() -> None:
    module = TwoOptimizers()
    module.lr = 1.0
    rates = named(LearningRate(schedule="linear(to=0.0)", params="head"), module=module, max_epochs=1)
    assert rates.of("head.bias") == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert rates.of("body.0.bias") == [1.0] * 5


def test_epochs_are_those_of_the_accumulation_scheduler() -> None:
    rates = used(
        LearningRate(schedule="step(every='1 epoch', gamma=0.5)"),
        max_epochs=4,
    )
    assert rates == [*[1.0] * 5, *[0.5] * 5, *[0.25] * 5, *[0.125] * 5, 1 / 16]
    stepped = Named()
    trainer(
        GradientAccumulationScheduler({0: 1, 1: 2, 3: 5}),
        LearningRate(schedule="step(every='1 epoch', gamma=0.5)"),
        stepped,
        max_epochs=4,
    ).fit(Toy(lr=1.0), Loader())
    assert stepped.of("head.bias") == [*[1.0] * 5, *[0.5] * 3, *[0.25] * 3, 0.125]


def test_learning_rate_monitor_shows_each_group_once(tmp_path: Path) -> None:
    callbacks = (
        LearningRateMonitor("step"),
        LearningRate(schedule="linear(to=0.0)", params="head"),
        LearningRate(schedule="step(every=2)", params="body", label="body"),
    )
    trainer(*callbacks, logger=CSVLogger(tmp_path), max_epochs=1).fit(Toy(lr=1.0), Loader())
    header, *rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    columns = [name for name in header.split(",") if name.startswith("lr-")]
    assert columns == ["lr-AdamW/pg1", "lr-AdamW/pg2"]
    assert {"learning_rate/factor", "body/learning_rate/factor"} <= set(header.split(","))
    logged = [float(cell) for row in rows if (cell := row.split(",")[header.split(",").index(columns[1])])]
    assert logged == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


def parts() -> tuple[LearningRate, LearningRate]:
    return (
        LearningRate(schedule="cosine_restarts('40%', peak_decay=0.5)", params="head"),
        LearningRate(schedule="warmup(4) >> stable_decay('1 epoch')", params="body", label="body"),
    )


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_resumed_it_goes_on_to_the_bit(stop: int, tmp_path: Path) -> None:
    whole, saved = Toy(lr=0.1), tmp_path / "a.ckpt"
    trainer(*parts()).fit(whole, Loader())
    with pytest.raises(StopError):
        trainer(*parts(), StopAfter(stop, saved)).fit(Toy(lr=0.1), Loader())
    trainer(*parts()).fit(resumed := Toy(lr=0.1), Loader(), ckpt_path=saved)
    assert_equal(weights(resumed), weights(whole))


def test_with_more_epochs_on_resume_the_last_part_stretches_and_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule, saved = "warmup('40%') >> stable_decay('1 epoch')", tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(LearningRate(schedule=schedule), StopAfter(7, saved)).fit(Toy(lr=1.0), Loader())
    rates = Named()
    longer = trainer(LearningRate(schedule=schedule), rates, max_epochs=6)
    longer.fit(Toy(lr=1.0), Loader(), ckpt_path=saved)
    assert rates.of("head.bias")[:19] == [1.0] * 19
    assert rates.of("head.bias")[19] == pytest.approx(1 - 0.2**0.5)
    assert "LearningRate: the rate now ends at step 30, not 15" in capsys.readouterr().out


def test_resumed_in_another_order_of_the_list_it_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole, saved = Toy(lr=0.1), tmp_path / "a.ckpt"
    unfreeze = lambda: lt.ProgressiveUnfreeze(stages=["head", "body"], at=2)  # noqa: E731 splits too
    trainer(*parts(), unfreeze()).fit(whole, Loader())
    with pytest.raises(StopError):
        trainer(*parts(), unfreeze(), StopAfter(7, saved)).fit(Toy(lr=0.1), Loader())
    resumed = Toy(lr=0.1)
    trainer(unfreeze(), *parts()[::-1]).fit(resumed, Loader(), ckpt_path=saved)
    assert_equal(weights(resumed), weights(whole))
