"""A rate that is divided when a validation metric stops improving."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

import lightning_tricks as lt
from lightning_tricks import LearningRate, PlateauDecay, WarmupCosine
from lightning_tricks.core.stalling import observed, unseen
from lightning_tricks.updates.plateau_decay import decayed
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights


class Graded(Toy):
    """Logs the given grades, one for each validation of the run, whatever it has learnt."""

    def __init__(self, *grades: float, **options: Any) -> None:
        super().__init__(lr=options.pop("lr", 1.0), **options)
        self.grades = grades
        self.register_buffer("validations", torch.zeros((), dtype=torch.int64))

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("grade", self.grades[int(self.validations)])
            self.validations += 1


class Rates(Callback):
    """Collects the rate of each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def fit(module: Graded, *callbacks: Callback, **settings: Any) -> tuple[list[float], Trainer]:
    rates = Rates()
    settings = {"max_epochs": len(module.grades), **settings}
    path = settings.pop("ckpt_path", None)
    train = Loader(settings.pop("batches", 5))
    runner = trainer(*callbacks, rates, **settings)
    runner.fit(module, train, Loader(2, seed=9, fixed=True), ckpt_path=path)
    return rates.seen, runner


def torch_factors(grades: list[float], settings: dict[str, Any]) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        settings["mode"],
        settings["factor"],
        settings["patience"] - 1,
        threshold=settings["min_delta"],
        threshold_mode="abs",
        cooldown=settings["cooldown"],
        min_lr=settings["final"],
        eps=0.0,
    )
    rates = []
    for grade in grades:
        plateau.step(grade)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def our_factors(grades: list[float], settings: dict[str, Any]) -> list[float]:
    state = {**unseen(settings["mode"]), "rest": 0, "factor": 1.0}
    rates = []
    for grade in grades:
        state = observed(state, grade, min_delta=settings["min_delta"], mode=settings["mode"])
        rest = {name: settings[name] for name in ("factor", "patience", "cooldown", "final")}
        state = decayed(state, **rest)
        rates.append(state["factor"])
    return rates


def test_it_is_torchs_over_a_thousand_random_sequences() -> None:
    draw, decays = random.Random(0), 0
    for _ in range(1000):
        settings = {
            "mode": draw.choice(["min", "max"]),
            "factor": draw.uniform(0.05, 0.95),
            "patience": draw.randint(1, 5),
            "min_delta": draw.choice([0.0, 0.1, draw.random()]),
            "cooldown": draw.choice([0, 0, draw.randint(1, 5)]),
            "final": draw.choice([0.0, draw.random()]),
        }
        odd = [math.nan, math.inf, -math.inf, 0.3, 0.2]
        grades = [
            draw.choice([draw.random(), draw.randint(0, 9) / 10, *odd[: draw.randint(0, 5)]])
            for _ in range(40)
        ]
        expected = torch_factors(grades, settings)
        assert our_factors(grades, settings) == pytest.approx(expected, rel=1e-12), settings
        decays += len(set(expected)) - 1
    assert decays > 1000


def test_it_is_the_rate_of_the_run() -> None:
    grades = [1.0, 0.9, 0.9, 0.95, 0.8, 0.81, 0.81, 0.81, 0.81, 0.81]
    settings = {"factor": 0.5, "patience": 2, "min_delta": 0.0, "mode": "min", "cooldown": 1, "final": 0.2}
    technique = PlateauDecay(monitor="grade", **settings)
    rates, runner = fit(Graded(*grades), technique)
    expected = torch_factors(grades, settings)
    assert rates == [1.0] * 5 + [rate for rate in expected[:-1] for _ in range(5)]
    assert expected[-1] == runner.optimizers[0].param_groups[0]["lr"] == 0.2
    assert technique.outcome() == {"decays": 3, "factor": 0.2}


def test_beside_a_schedule_both_count() -> None:
    schedule = LearningRate(schedule="warmup(3) >> constant()")
    rates, _ = fit(Graded(1.0, 1.0, 1.0), PlateauDecay(monitor="grade", patience=1), schedule)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, *[1] * 5, *[0.1] * 5])
    turned, _ = fit(Graded(1.0, 1.0, 1.0), WarmupCosine(), PlateauDecay(monitor="grade", patience=1))
    alone, _ = fit(Graded(1.0, 1.0, 1.0), WarmupCosine())
    assert turned[:10] == alone[:10]
    assert turned[10:] == pytest.approx([0.1 * rate for rate in alone[10:]])


def test_ratios_between_groups_survive_with_a_floor() -> None:
    class Groups(Graded):
        def configure_optimizers(self) -> Any:
            groups = [{"params": self.body.parameters(), "lr": 0.1}, {"params": self.head.parameters()}]
            return torch.optim.SGD(groups, lr=1.0)

    _, runner = fit(Groups(1.0, 1.0, 1.0), PlateauDecay(monitor="grade", patience=1, final=0.05))
    assert [group["lr"] for group in runner.optimizers[0].param_groups] == pytest.approx([0.005, 0.05])


def test_several_validations_in_an_epoch_each_count() -> None:
    technique = PlateauDecay(monitor="grade", patience=2, factor=0.5)
    rates, _ = fit(
        Graded(1.0, 1.0, 1.0, 1.0), technique, max_epochs=1, val_check_interval=1, limit_train_batches=4
    )
    assert rates == [1.0, 1.0, 1.0, 0.5]


def test_the_sanity_check_and_later_validations_do_not_count() -> None:
    technique = PlateauDecay(monitor="grade", patience=1)
    with pytest.warns(
        UserWarning, match="PlateauDecay watches 'grade', but the sanity check logged 'val_loss'"
    ):
        _, runner = fit(module := Graded(1.0, 2.0, 2.0), technique, max_epochs=1, num_sanity_val_steps=1)
    runner.validate(module, Loader(2), verbose=False)
    assert technique.outcome() == {"decays": 0, "factor": 1.0}


def test_learning_rate_monitor_shows_it(tmp_path: Path) -> None:
    callbacks = (LearningRateMonitor("step"), PlateauDecay(monitor="grade", patience=1))
    fit(Graded(1.0, 1.0, 1.0), *callbacks, logger=CSVLogger(tmp_path))
    header, *rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    column = header.split(",").index("lr-AdamW")
    assert [float(cell) for row in rows if (cell := row.split(",")[column])] == [*[1.0] * 10, *[0.1] * 5]
    assert "plateau_decay/factor" in header


GRADES = (1.0, 1.1, 1.2, 0.9, 1.0, 1.0, 1.0, 1.0, 0.5, 0.6, 0.7, 0.8)


def decay() -> PlateauDecay:
    return PlateauDecay(monitor="grade", patience=2, factor=0.5, cooldown=1)


class InValidation(StopAfter):
    """Saves and breaks off within a validation."""

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._called("on_validation_batch_end", trainer)


@pytest.mark.parametrize(
    ("hook", "count"),
    [
        ("on_train_batch_end", 7),
        ("on_train_batch_end", 13),
        ("on_validation_end", 2),
        ("on_validation_end", 3),
        ("on_validation_end", 5),
        ("on_train_epoch_end", 3),
    ],
)
def test_resumed_it_goes_on_to_the_bit(hook: str, count: int, tmp_path: Path) -> None:
    settings = {"max_epochs": 4, "val_check_interval": 2, "batches": 6}
    module, technique = Graded(*GRADES, lr=0.1), decay()
    whole, _ = fit(module, technique, **settings)
    saved = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        fit(Graded(*GRADES, lr=0.1), decay(), InValidation(count, saved, hook), **settings)
    again = decay()
    rates, _ = fit(resumed := Graded(*GRADES, lr=0.1), again, ckpt_path=saved, **settings)
    assert rates == whole[len(whole) - len(rates) :]
    assert_equal(weights(resumed), weights(module))
    assert (again.saved(), again.outcome()) == (technique.saved(), technique.outcome())
    assert technique.outcome()["decays"] == 3


@pytest.mark.parametrize("count", [3, 9, 10])
def test_resumed_within_a_validation_each_value_counts_once(count: int, tmp_path: Path) -> None:
    """Lightning leaves a validation out that was broken off; what it did not log is not counted."""
    settings = {"max_epochs": 4, "val_check_interval": 2, "batches": 6}
    saved, technique = tmp_path / "a.ckpt", decay()
    with pytest.raises(StopError):
        stop = InValidation(count, saved, "on_validation_batch_end")
        fit(Graded(*GRADES, lr=0.1), decay(), stop, **settings)
    rates, _ = fit(module := Graded(*GRADES, lr=0.1), technique, ckpt_path=saved, **settings)
    made = int(module.validations)
    assert made in (len(GRADES) - 1, len(GRADES))
    told = {"factor": 0.5, "patience": 2, "min_delta": 0.0, "mode": "min", "cooldown": 1, "final": 0.0}
    expected = torch_factors(list(GRADES[:made]), told)
    assert technique.outcome()["factor"] == expected[-1]
    assert rates[-1] == 0.1 * expected[-2]


@pytest.mark.parametrize("change", [{"monitor": "val_loss"}, {"mode": "max"}])
def test_resumed_with_another_metric_is_an_error(change: dict[str, Any], tmp_path: Path) -> None:
    saved = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        fit(Graded(*GRADES), PlateauDecay(monitor="grade"), StopAfter(1, saved, "on_validation_end"))
    (name, now), *_ = change.items()
    with (
        pytest.raises(ValueError, match=f"{name} must be that of the checkpoint, .* got '{now}'"),
        pytest.warns(UserWarning, match="resumed with changed settings"),
    ):
        fit(Graded(*GRADES), PlateauDecay(**{"monitor": "grade", **change}), ckpt_path=saved)


def test_a_second_fit_of_the_trainer_goes_on_and_a_new_trainer_begins_anew() -> None:
    technique = PlateauDecay(monitor="grade", patience=2, factor=0.5)
    _, runner = fit(Graded(1.0, 1.0), technique)
    runner.fit_loop.max_epochs = 4
    # Another module and optimizer: the second value in a row that does not beat the 1 of the first fit.
    runner.fit(Graded(1.0, 0.9), Loader(5), Loader(2, seed=9, fixed=True))
    assert technique.outcome() == {"decays": 1, "factor": 0.5}
    assert runner.optimizers[0].param_groups[0]["lr"] == 0.5
    fit(Graded(1.0, 1.0), technique)
    assert technique.outcome() == {"decays": 0, "factor": 1.0}


def test_it_counts_as_the_trigger_of_unfreezing_does() -> None:
    draw = random.Random(1)
    for _ in range(200):
        mode = draw.choice(["min", "max"])
        patience, delta = draw.randint(1, 4), draw.choice([0.0, 0.2])
        grades = [draw.choice([0.1, 0.2, 0.3, 0.5, math.nan]) for _ in range(20)]
        plateau = lt.Plateau("grade", patience=patience, min_delta=delta, mode=mode)
        state, fired = plateau.start(), 0
        for grade in grades:
            state = plateau.observe(state, grade)
            if plateau.fires(state):
                state, fired = plateau.rest(state), fired + 1
        settings = {"patience": patience, "min_delta": delta, "mode": mode, "cooldown": 0, "final": 0.0}
        assert our_factors(grades, {**settings, "factor": 0.5})[-1] == 0.5**fired
