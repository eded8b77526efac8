"""An extra validation pass: the same numbers as ever, and no trace of it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_tricks.lifecycle.evaluation import undisturbed, validate_again
from tests.lifecycle.passes import AtEnd, fixed, run
from tests.toys import Loader, StopError, Toy, assert_equal, trainer


class Random(Toy):
    """Logs what depends on random numbers and on which batches come."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val_noise", torch.rand(()) + random.random() + np.random.rand())
        self.log("val_data", batch[0].sum(), prog_bar=True)


class Counting(Random):
    """Keeps an accuracy of its training and one of its validation."""

    def __init__(self) -> None:
        super().__init__()
        self.train_acc, self.val_acc = MulticlassAccuracy(3), MulticlassAccuracy(3)

    def training_step(self, batch, batch_idx):
        self.train_acc.update(self.head(self.body(batch[0])), batch[1])  # never computed, never reset
        self.log("loss", loss := super().training_step(batch, batch_idx))
        return loss

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.val_acc(self.head(self.body(batch[0])), batch[1])
        self.log("val_acc", self.val_acc)


@pytest.mark.parametrize("kind", [Random, Counting])
def test_no_trace_is_left(kind, tmp_path):
    logger = CSVLogger(tmp_path)
    at_end = run(kind(), validate_again, ModelCheckpoint(tmp_path), logger=logger)
    assert "val_loss" in at_end.result
    assert_equal(at_end.before, at_end.after)


def test_the_metric_is_that_of_trainer_validate():
    module = Toy()
    at_end = run(module, validate_again, val=fixed(2))
    (wanted,) = trainer().validate(module, fixed(2), verbose=False)
    assert at_end.result["val_loss"] == pytest.approx(wanted["val_loss"], rel=1e-6)


def shuffled() -> DataLoader:
    return fixed(6, shuffle=True, generator=torch.Generator().manual_seed(3))


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
@pytest.mark.parametrize("loader", [lambda: Loader(2, seed=9), shuffled, lambda: fixed(6, shuffle=True)])
def test_two_passes_see_the_same_data_and_random_numbers(loader):
    def twice(trainer, pl_module):
        return validate_again(trainer, pl_module), validate_again(trainer, pl_module)

    # Only some of the data, so that another order gives other numbers.
    at_end = run(Random(), twice, val=loader(), limit_val_batches=2)
    first, second = at_end.result
    assert first == second
    assert first["val_data"] != at_end.before["metrics"][0]["val_data"]


class Stream(Loader):
    """Goes on where it was at the last look, and would not start again."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()

    def state_dict(self):
        return {"passes": self.passes, **super().state_dict()}

    def load_state_dict(self, state):
        self.passes = state["passes"]
        super().load_state_dict(state)


def test_loaders_go_on_from_where_they_were():
    places = []

    def look(trainer, pl_module):
        def note():
            places.append((train.generator.get_state(), val.state_dict()))

        note()
        with undisturbed(trainer, pl_module):
            for loader in (
                trainer.fit_loop._combined_loader,
                trainer.fit_loop.epoch_loop.val_loop._combined_loader,
            ):
                list(loader)
            note()
        note()

    train, val = shuffled(), Stream(2, seed=9)
    run(Toy(), look, train=train, val=val)
    before, within, after = places
    assert_equal(before, after)
    assert not torch.equal(before[0], within[0])
    assert before[1] != within[1]


def test_other_callbacks_and_loggers_hear_nothing(tmp_path):
    class Ears(Callback):
        heard: list[str] = []  # noqa: RUF012

        def on_validation_start(self, *_):
            self.heard.append("start")

        def on_validation_batch_end(self, *_):
            self.heard.append("batch")

        def on_validation_end(self, *_):
            self.heard.append("end")

    class Ear(CSVLogger):
        heard: list[dict] = []  # noqa: RUF012

        def log_metrics(self, metrics, step=None):
            self.heard.append(metrics)

    def silently(trainer, pl_module):
        before = len(Ears.heard), len(Ear.heard)
        validate_again(trainer, pl_module)
        return before, (len(Ears.heard), len(Ear.heard))

    before, after = run(Toy(), silently, Ears(), logger=Ear(tmp_path)).result
    assert before == after
    assert min(before) > 0


def test_a_module_may_use_its_logger_as_ever(tmp_path):
    class Painter(Toy):
        def on_validation_epoch_end(self):
            self.logger.experiment.log_metrics({"picture": 1.0})
            self.logger.log_metrics({"mine": 1.0})

    assert run(Painter(), validate_again, logger=CSVLogger(tmp_path)).result


def test_metrics_of_training_and_of_earlier_validations_are_not_taken_for_this_ones():
    class Fickle(Toy):
        def training_step(self, batch, batch_idx):
            self.log("train_loss", 1.0)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            if self.current_epoch == 0:
                self.log("first_only", 1.0)
            super().validation_step(batch, batch_idx)

    at_end = run(Fickle(), validate_again)
    assert set(at_end.result) == {"val_loss"}
    assert set(at_end.before["metrics"][0]) == {"val_loss", "first_only", "train_loss"}


class Breaking(Counting):
    broken = False

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        if self.broken:
            torch.rand(3)
            raise StopError


def test_an_error_leaves_no_trace_either(tmp_path):
    def break_off(trainer, pl_module):
        Breaking.broken = True
        try:
            validate_again(trainer, pl_module)
        finally:
            Breaking.broken = False

    at_end = run(Breaking(), break_off, ModelCheckpoint(tmp_path), logger=CSVLogger(tmp_path))
    assert at_end.error is not None
    assert_equal(at_end.before, at_end.after)


def test_a_validation_that_never_ran_is_run():
    at_end = run(Toy(), validate_again, check_val_every_n_epoch=99)
    assert at_end.before["metrics"][0] == {}
    assert set(at_end.result) == {"val_loss"}


def test_loaders_are_not_loaded_anew_for_it():
    class Data(Toy):
        loaded = 0

        def val_dataloader(self):
            Data.loaded += 1
            return fixed(2)

    at_end = AtEnd(lambda trainer, module: (Data.loaded, validate_again(trainer, module), Data.loaded))
    trainer(at_end, reload_dataloaders_every_n_epochs=1).fit(Data(), Loader())
    before, _, after = at_end.result
    assert before == after == 3


def test_frozen_parts_stay_in_eval_mode():
    class Frozen(Toy):
        def on_train_start(self):
            self.body[1].eval()

        def on_validation_model_train(self):
            self.train()  # forgets what was frozen
            self.body[1].eval()

    at_end = run(Frozen(), validate_again)
    assert_equal(at_end.before["modes"], at_end.after["modes"])
    assert False in at_end.after["modes"]


def test_without_validation_it_says_so():
    def refused(trainer, pl_module):
        with pytest.raises(RuntimeError, match="must be a validation loop"):
            validate_again(trainer, pl_module)

    run(Toy(), refused, limit_val_batches=0)
