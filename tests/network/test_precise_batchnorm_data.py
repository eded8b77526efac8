"""Where evaluations outside of fit find the training data that BatchNorm statistics are estimated over."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import lightning_tricks as lt
from tests.distributed.cells import assert_same_on_all
from tests.network.test_precise_batchnorm import Fixed
from tests.network.test_precise_batchnorm_outside import BATCHES, Fed, Looks, between, evaluation
from tests.toys import Toy, assert_equal, trainer, weights


class Endless(IterableDataset[Any]):
    """Has no length, and no end."""

    def __iter__(self) -> Any:
        while True:
            yield from BATCHES


@pytest.mark.parametrize(
    ("settings", "data", "batches"),
    [
        ({"limit_train_batches": 2}, lambda: Fixed(), 2),
        ({"limit_train_batches": 0.4, "accumulate_grad_batches": 4}, lambda: Fixed(), 2),
        ({}, lambda: DataLoader(Endless(), batch_size=None), 4),
        ({}, lambda: DataLoader(BATCHES, None, num_workers=1, persistent_workers=True), 4),
        ({"overfit_batches": 3}, lambda: DataLoader(BATCHES, batch_size=None), 3),
        ({"inference_mode": False}, lambda: Fixed(), 4),
    ],
    ids=["limit", "share", "endless", "workers", "overfit", "no inference mode"],
)
def test_the_loader_is_what_fit_would_make_of_it(settings, data, batches, tmp_path):
    path, module = between(tmp_path / "a.ckpt"), Fed()
    module.train_dataloader = data
    looks = Looks(BATCHES[:batches])
    runner = trainer(lt.PreciseBatchNorm(batches=4), looks, **settings)
    runner.test(module, evaluation(), ckpt_path=path, verbose=False)
    assert looks.count == 2


def test_bf16_mixed(tmp_path):
    path, module = between(tmp_path / "a.ckpt"), Fed()
    technique = lt.PreciseBatchNorm()
    trainer(technique, precision="bf16-mixed").test(module, evaluation(), ckpt_path=path, verbose=False)
    assert technique.outcome() == {"estimates": 1}
    seen = torch.cat([module.body[0](x) for x, _ in BATCHES]).detach()
    torch.testing.assert_close(module.body[1].running_mean, seen.mean(0), rtol=0.02, atol=0.02)
    torch.testing.assert_close(module.body[1].running_var, seen.var(0, correction=0), rtol=0.05, atol=0.05)


class Data(LightningDataModule):
    """Makes its training data for fit alone."""

    prepared = 0

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.prepared += 1

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.train_set = BATCHES
        self.test_set = [stage, *evaluation()]

    def train_dataloader(self) -> Any:
        return DataLoader(self.train_set, batch_size=None)

    def test_dataloader(self) -> Any:
        return DataLoader(self.test_set[1:], batch_size=None)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls.append(str(self.trainer.state.stage.value))
        return batch


def test_a_datamodule_is_set_up_for_fit_and_then_as_it_was(tmp_path):
    path, module, data = between(tmp_path / "a.ckpt"), Toy(), Data()
    trainer(lt.PreciseBatchNorm(), looks := Looks(BATCHES)).test(
        module, datamodule=data, ckpt_path=path, verbose=False
    )
    assert (looks.count, data.prepared, data.calls) == (2, 1, ["train"] * 5 + ["test"] * 2)
    assert data.test_set[0] == "test"
    assert not hasattr(data, "train_set")


def test_loaders_that_the_module_was_trained_on_serve_it_again(tmp_path):
    module, technique = Toy(), lt.PreciseBatchNorm()
    path = between(tmp_path / "a.ckpt", technique, module=module)
    runner = trainer(technique, looks := Looks(BATCHES))
    runner.test(module, evaluation(), ckpt_path=path, verbose=False)
    assert looks.count == 2
    copy.deepcopy(technique)
    with pytest.warns(UserWarning, match="Toy defines no train_dataloader"):
        trainer(technique).test(Toy(), evaluation(), ckpt_path=path, verbose=False)


class Unset(Fed):
    """Makes what its loader needs for fit alone."""

    def train_dataloader(self) -> Any:
        return DataLoader(self.data)


class Odd(Data):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            raise FileNotFoundError("no such folder")


class NoTraining(Data):
    train_dataloader = LightningDataModule.train_dataloader


@pytest.mark.parametrize(
    ("module", "data", "settings", "told"),
    [
        (Toy, evaluation, {}, "Toy defines no train_dataloader: "),
        (Toy, NoTraining, {}, "NoTraining defines no train_dataloader: "),
        (Unset, evaluation, {}, "train_dataloader of Unset .* got AttributeError: 'Unset' object has no"),
        (Toy, Odd, {}, r"setup\('fit'\) of Odd .* got FileNotFoundError: no such folder"),
        (Fed, evaluation, {"limit_train_batches": 0}, "must have a batch .* limit_train_batches=0"),
    ],
    ids=["module", "datamodule", "unset", "odd", "limit"],
)
def test_without_training_data_a_warning_says_so(module, data, settings, told, tmp_path):
    path, looked = between(tmp_path / "a.ckpt"), module()
    technique = lt.PreciseBatchNorm()
    with pytest.warns(UserWarning, match=f"statistics that the module holds.*{told}"):
        trainer(technique, **settings).test(looked, data(), ckpt_path=path, verbose=False)
    assert technique.outcome() == {"estimates": 0}
    assert_equal(weights(looked), dict(torch.load(path, weights_only=True)["state_dict"]))


def test_a_module_without_batchnorm_is_a_warning():
    module = Fed()
    module.body[1] = nn.LayerNorm(8)
    with pytest.warns(UserWarning, match="must have a BatchNorm .* got none in Fed: remove PreciseBatchNorm"):
        trainer(lt.PreciseBatchNorm()).test(module, evaluation(), verbose=False)


class Halves(Fed):
    """Gives each process its own batches, of which Lightning makes them with its sampler."""

    def train_dataloader(self) -> Any:
        data = [(x, y) for batch in BATCHES for x, y in zip(*batch, strict=True)]
        return DataLoader(data, 4)

    def test_dataloader(self) -> Any:
        return DataLoader([each for batch in evaluation() for each in zip(*batch, strict=True)], 8)

    def on_test_epoch_end(self) -> None:
        norm = self.body[1]
        seen = torch.cat([self.body[0](x) for x, _ in BATCHES])
        torch.testing.assert_close(norm.running_mean, seen.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, seen.var(0, correction=0), rtol=1e-5, atol=1e-6)
        assert_same_on_all(dict(norm.named_buffers()))


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders:UserWarning")
def test_two_processes_agree_on_the_statistics_of_all_data(tmp_path):
    path, module = between(tmp_path / "a.ckpt"), Halves()
    settings = {"strategy": "ddp_fork", "devices": 2}
    trainer(lt.PreciseBatchNorm(), **settings).test(module, ckpt_path=path, verbose=False)


class Lame(Halves):
    """Finds no data in one of the processes."""

    def train_dataloader(self) -> Any:
        if self.global_rank == 1:
            raise FileNotFoundError("no such folder")
        return super().train_dataloader()

    def on_test_epoch_end(self) -> None:
        (technique,) = (each for each in self.trainer.callbacks if isinstance(each, lt.PreciseBatchNorm))
        assert technique.outcome() == {"estimates": 0}


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders:UserWarning")
@pytest.mark.filterwarnings("ignore:.*got an error in another process:UserWarning")
def test_processes_do_not_wait_for_one_without_data(tmp_path):
    settings = {"strategy": "ddp_fork", "devices": 2}
    trainer(lt.PreciseBatchNorm(), **settings).test(Lame(), verbose=False)
