from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
)
from lightning.pytorch.loggers import CSVLogger

from lightning_tricks import WarmupCosine
from tests.toys import Loader, StopAfter, StopError, Toy, TwoOptimizers, scaler_plugin, trainer


class Rates(Callback):
    """Collects the rate that each optimizer step really uses, and those set after the last."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.after = 0.0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if optimizer is trainer.optimizers[0]:
            self.seen.append(optimizer.param_groups[0]["lr"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after = trainer.optimizers[0].param_groups[0]["lr"]


def used(technique: Callback, module: Toy | None = None, **settings: Any) -> list[float]:
    rates = Rates()
    loader = settings.pop("loader", Loader())
    trainer(technique, rates, **settings).fit(module or Toy(lr=1.0), loader)
    return [*rates.seen, rates.after]


# By hand for a run of 5 steps (one epoch); the last entry is the rate after the run.
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"warmup": 0}, [1.0, 0.9045, 0.6545, 0.3455, 0.0955, 0.0]),
        ({"warmup": 1}, [0.5, 1.0, 0.8536, 0.5, 0.1464, 0.0]),
        ({"warmup": 5}, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 0.0]),
        ({"warmup": "100%", "final": 0.3}, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 0.3]),
        ({"warmup": 2, "shape": "exponential"}, [0.01, 0.1, 1.0, 0.75, 0.25, 0.0]),
        ({"warmup": 1, "final": 0.5}, [0.5, 1.0, 0.9268, 0.75, 0.5732, 0.5]),
        ({"warmup": "20%"}, [0.5, 1.0, 0.8536, 0.5, 0.1464, 0.0]),
        ({"warmup": "1 epoch"}, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 0.0]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*begins at step 5, but the run has 5")  # three of them are all warm-up
def test_each_steps_rate_against_a_table_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    assert used(WarmupCosine(**settings), max_epochs=1) == pytest.approx(expected, abs=5.1e-5)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_ratios_between_groups_survive_with_a_floor(optimizer: str) -> None:
    class Groups(Toy):
        def configure_optimizers(self) -> Any:
            groups = [
                {"params": self.body.parameters(), "lr": 0.1},
                {"params": self.head.parameters(), "lr": 1.0},
            ]
            return getattr(torch.optim, optimizer)(groups)

    ratios: list[float] = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            slow, fast = (group["lr"] for group in optimizer.param_groups)
            ratios.append(fast / slow)

    runner = trainer(WarmupCosine(warmup=2, final=0.05), Look())
    runner.fit(Groups(), Loader())
    assert ratios == pytest.approx([10.0] * 15)
    assert [g["lr"] for g in runner.optimizers[0].param_groups] == pytest.approx([0.005, 0.05])


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_epochs": 3}, 15),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 9),
        ({"max_epochs": 3, "accumulate_grad_batches": 7}, 3),
        ({"max_epochs": 4, "limit_train_batches": 3}, 12),
        ({"max_steps": 11, "max_epochs": -1}, 11),
        ({"max_steps": 11, "max_epochs": 2}, 10),
        ({"max_steps": 7, "max_epochs": 100}, 7),
        ({"max_epochs": 3, "precision": "bf16-mixed"}, 15),
    ],
    ids=str,
)
def test_warmup_and_decay_fit_the_steps_that_the_run_really_makes(
    settings: dict[str, Any], steps: int
) -> None:
    rates = used(WarmupCosine(warmup=1), **settings)
    assert len(rates) == steps + 1
    assert rates[:-1].count(max(rates)) == 1
    assert min(rates[:-1]) > 0.0
    assert rates[-1] == 0.0


def test_accumulation_scheduler_that_lightnings_estimate_ignores() -> None:
    rates = Rates()
    runner = trainer(
        GradientAccumulationScheduler({0: 1, 1: 2, 3: 5}), WarmupCosine(warmup="1 epoch"), rates, max_epochs=6
    )
    runner.fit(Toy(lr=1.0), Loader())
    assert runner.global_step == len(rates.seen) == 5 + 3 + 3 + 1 + 1 + 1
    assert runner.estimated_stepping_batches != 14
    assert rates.seen[5] == 1.0
    assert rates.after == 0.0


def test_manual_optimization_with_two_optimizers() -> None:
    module = TwoOptimizers()
    module.lr = 1.0
    rates = used(WarmupCosine(warmup=1), module, max_epochs=1)
    assert rates == pytest.approx([0.5, 1.0, 0.8536, 0.5, 0.1464, 0.0], abs=5.1e-5)


def test_steps_that_a_scaler_skips_still_advance_the_schedule_16228() -> None:
    rates = used(WarmupCosine(warmup=1), max_epochs=1, plugins=[scaler_plugin(2.0**40)])
    assert rates == pytest.approx([0.5, 1.0, 0.8536, 0.5, 0.1464, 0.0], abs=5.1e-5)


def test_learning_rate_monitor_shows_it(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callbacks = (LearningRateMonitor("step"), WarmupCosine(warmup=1))
    trainer(*callbacks, logger=logger, max_epochs=1).fit(Toy(lr=1.0), Loader())
    header, *rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    column = header.split(",").index("lr-AdamW")
    logged = [float(cell) for row in rows if (cell := row.split(",")[column])]
    assert logged == pytest.approx([0.5, 1.0, 0.8536, 0.5, 0.1464], abs=5.1e-5)
    assert "warmup_cosine/factor" in header


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_resumed_it_goes_on_where_it_stopped(stop: int, tmp_path: Path) -> None:
    whole = used(WarmupCosine(warmup="40%"))
    saved = tmp_path / "a.ckpt"
    first, second = Rates(), Rates()
    with pytest.raises(StopError):
        trainer(WarmupCosine(warmup="40%"), first, StopAfter(stop, saved)).fit(Toy(lr=1.0), Loader())
    trainer(WarmupCosine(warmup="40%"), second).fit(Toy(lr=1.0), Loader(), ckpt_path=saved)
    assert [*first.seen, *second.seen, second.after] == whole


@pytest.mark.parametrize(("stop", "warm"), [(2, 6), (7, 6)])
def test_with_more_epochs_on_resume_the_decay_stretches_and_a_line_says_so_19865(
    stop: int, warm: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, rates = tmp_path / "a.ckpt", Rates()
    with pytest.raises(StopError):
        trainer(WarmupCosine(warmup="40%"), StopAfter(stop, saved)).fit(Toy(lr=1.0), Loader())
    trainer(WarmupCosine(warmup="40%"), rates, max_epochs=6).fit(Toy(lr=1.0), Loader(), ckpt_path=saved)
    whole = used(WarmupCosine(warmup=warm), max_epochs=6)
    assert [*rates.seen, rates.after] == whole[stop:]
    assert "WarmupCosine: the rate now ends at step 30, not 15" in capsys.readouterr().out


def test_a_second_fit_with_more_epochs_goes_on() -> None:
    rates = Rates()
    runner, module = trainer(WarmupCosine(warmup=3), rates, max_epochs=1), Toy(lr=1.0)
    runner.fit(module, Loader())
    runner.fit_loop.max_epochs = 3
    runner.fit(module, Loader())
    whole = used(WarmupCosine(warmup=3))
    assert rates.seen[5:] == whole[5:-1]


def test_one_object_in_two_trainers_starts_afresh() -> None:
    technique = WarmupCosine(warmup=1)
    assert used(technique, max_epochs=1) == used(technique, max_epochs=1)


def test_a_rate_that_is_a_tensor_of_the_module_stays_what_it_is() -> None:
    module = Toy(lr=torch.tensor(1.0), foreach=False)
    first = [float(rate) for rate in used(WarmupCosine(warmup=1), module, max_epochs=1)]
    assert module.lr == 1.0
    assert first[-1] == 0.0
    assert [float(rate) for rate in used(WarmupCosine(warmup=1), module, max_epochs=1)] == first


def test_epochs_of_changing_length_are_said() -> None:
    class Growing(Toy):
        def train_dataloader(self) -> Loader:
            return Loader(5 + 5 * self.current_epoch)

    with pytest.warns(UserWarning, match="the run was taken to make 10 steps until now, but made 15"):
        trainer(WarmupCosine(final=0.1), reload_dataloaders_every_n_epochs=1).fit(Growing())


def test_a_stale_base_rate_does_not_count() -> None:
    class Stale(Toy):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            optimizer.param_groups[0]["initial_lr"] = 77.0
            return optimizer

    assert max(used(WarmupCosine(warmup=1), Stale(lr=1.0))) == 1.0


def test_lightnings_rate_finder_sets_the_base_rate_21030(tmp_path: Path) -> None:
    rates = Rates()
    finder = LearningRateFinder(num_training_steps=100, early_stop_threshold=None)
    module = Toy(lr=1e-3)
    runner = trainer(finder, WarmupCosine(warmup=1), rates, default_root_dir=tmp_path)
    runner.fit(module, Loader(100))
    assert module.lr != 1e-3
    assert max(rates.seen) == module.lr


def test_a_run_that_goes_on_at_rate_0_is_told():
    with pytest.warns(UserWarning, match="ends at step 10, but the run goes on, with rate 0: raise total"):
        trainer(WarmupCosine(total=10)).fit(Toy(), Loader())
    trainer(WarmupCosine(total=10, final=0.1)).fit(Toy(), Loader())
    trainer(WarmupCosine(total=15)).fit(Toy(), Loader())
