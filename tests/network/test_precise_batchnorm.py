"""BatchNorm statistics that are those of the evaluated weights, and a training that never hears of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lightning_tricks as lt
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights

VALIDATION = Loader(2, seed=9, fixed=True)


class Fixed(Loader):
    """The same batches in each epoch."""

    def __init__(self) -> None:
        super().__init__(fixed=True)


class Checks(Callback):
    """Asserts in each validation that the statistics are those of the weights over the first batches."""

    def __init__(self, batches: int) -> None:
        self.batches, self.count, self.evaluated = list(Fixed())[:batches], 0, 0

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            check(pl_module, self.batches)
            self.count += 1

    def on_validation_batch_end(self, *_: Any) -> None:
        self.evaluated += 1


def check(module: Any, batches: list[Any]) -> None:
    """Assert that the first norm's statistics are those of ``module``'s weights."""
    first, norm = module.body[0], module.body[1]
    with torch.no_grad():
        seen = torch.cat([nn.functional.linear(x, first.weight, first.bias) for x, _ in batches])
    torch.testing.assert_close(norm.running_mean, seen.mean(0))
    torch.testing.assert_close(norm.running_var, seen.var(0, correction=0))
    assert norm.num_batches_tracked == len(batches)


def parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("batches", [2, 5, 100])
@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 2}, {"num_sanity_val_steps": 2}], ids=str)
def test_statistics_are_those_of_the_evaluated_weights_and_training_is_as_without(batches, settings):
    checks, module, plain = Checks(batches), Toy(), Toy()
    technique = lt.PreciseBatchNorm(batches=batches)
    trainer(technique, checks, **settings).fit(module, Fixed(), Loader(2, seed=9, fixed=True))
    trainer(**settings).fit(plain, Fixed(), Loader(2, seed=9, fixed=True))
    validations = 6 if "val_check_interval" in settings else 3
    assert checks.count == 2 * validations
    assert technique.outcome() == {"estimates": validations + 1}
    check(module, list(Fixed())[:batches])
    assert_equal(parameters(module), parameters(plain))


class Unsized(Loader):
    """Validation data that Lightning reads one batch ahead."""

    def __len__(self) -> int:
        raise TypeError


def test_the_validation_goes_on_where_it_was():
    checks = Checks(5)
    runner = trainer(lt.PreciseBatchNorm(), checks)
    runner.fit(Toy(), Fixed(), Unsized(3, seed=9, fixed=True))
    assert checks.evaluated == 9


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("first", [True, False])
def test_with_an_average_they_are_those_of_the_average(buffers, first):
    checks, module, plain = Checks(5), Toy(), Toy()
    ema = lt.EMAWeights(decay=0.5, buffers=buffers)
    precise = lt.PreciseBatchNorm()
    trainer(*([precise, ema] if first else [ema, precise]), checks).fit(module, Fixed(), VALIDATION)
    trainer(lt.EMAWeights(decay=0.5, buffers=buffers)).fit(plain, Fixed(), VALIDATION)
    assert checks.count == 6
    check(module, list(Fixed()))
    assert_equal(parameters(module), parameters(plain))  # the average
    with ema.live_weights():
        live = trainer()
        live.fit(alone := Toy(), Fixed(), VALIDATION)
        assert_equal(parameters(module), parameters(alone))


def test_fused_weights_get_theirs(tmp_path):
    module = Toy()
    fusion = lt.WeightFusion(collect=lt.LastEpochs(2), keep="always", update_batchnorm=False)
    trainer(fusion, lt.PreciseBatchNorm(), default_root_dir=tmp_path).fit(module, Fixed(), VALIDATION)
    check(module, list(Fixed()))


@pytest.mark.parametrize("averaged", [False, True])
def test_a_checkpoint_evaluates_to_what_was_validated(averaged, tmp_path):
    def techniques() -> list[Any]:
        return [lt.PreciseBatchNorm(), *([lt.EMAWeights(decay=0.5)] if averaged else [])]

    saver = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    runner = trainer(*techniques(), saver)
    runner.fit(Toy(), Fixed(), Loader(2, seed=9, fixed=True))
    assert len(saver.best_k_models) == 3
    for path, logged in saver.best_k_models.items():
        module = Toy.load_from_checkpoint(path)
        (found,) = trainer().validate(module, Loader(2, seed=9, fixed=True), verbose=False)
        assert found["val_loss"] == pytest.approx(float(logged), rel=1e-6)


@pytest.mark.parametrize(("hook", "count"), [("on_train_batch_end", 8), ("on_validation_end", 3)])
def test_a_run_resumed_between_validations_equals_the_uninterrupted_one(hook, count, tmp_path):
    def run(*others: Callback, ckpt_path: Path | None = None) -> Toy:
        module = Toy()
        runner = trainer(lt.PreciseBatchNorm(batches=3), lt.EMAWeights(), *others, val_check_interval=2)
        runner.fit(module, Loader(), Loader(2, seed=9, fixed=True), ckpt_path=ckpt_path)
        return module

    whole, path = run(), tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        run(StopAfter(count, path, hook))
    assert_equal(weights(whole), weights(run(ckpt_path=path)))


class Breaks(Callback):
    """Raises within the second validation."""

    def on_validation_epoch_start(self, *_: Any) -> None:
        self.seen = getattr(self, "seen", 0) + 1

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.live = weights(pl_module)

    def on_validation_batch_end(self, *_: Any) -> None:
        if self.seen == 2:
            raise StopError


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("first", [True, False])
def test_an_error_in_validation_leaves_those_of_training(buffers, first):
    breaks, module = Breaks(), Toy()
    pair = [lt.PreciseBatchNorm(), lt.EMAWeights(decay=0.5, buffers=buffers)]
    with pytest.raises(StopError):
        trainer(*(pair if first else pair[::-1]), breaks).fit(module, Loader(), VALIDATION)
    assert_equal(weights(module), breaks.live)


def shuffled(workers: int, persistent: bool) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(80, 4, generator=generator)
    data = TensorDataset(x, torch.randint(0, 3, (80,), generator=generator))
    own = torch.Generator().manual_seed(4)
    return DataLoader(
        data, 16, shuffle=True, generator=own, num_workers=workers, persistent_workers=persistent
    )


def stateful() -> Any:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    return torchdata.StatefulDataLoader(shuffled(0, False).dataset, 16, shuffle=True)


class Stream(IterableDataset[Any]):
    """Has no length."""

    def __iter__(self) -> Any:
        for x, label in Fixed():
            yield from zip(x, label, strict=True)


@pytest.mark.parametrize(
    "build",
    [
        lambda: shuffled(0, False),
        lambda: shuffled(1, True),
        lambda: DataLoader(Stream(), 16),
        lambda: stateful(),
        lambda: {"a": DataLoader(list(Fixed()), batch_size=None), "b": shuffled(0, False)},
    ],
    ids=["shuffled", "persistent workers", "stream", "stateful", "dict"],
)
def test_the_epoch_goes_on_where_it_was(build):
    class Takes(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.batches: list[Any] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.training:
                self.batches.append(batch)
            return super().training_step(batch["a"] if isinstance(batch, dict) else batch, batch_idx)

    ours, plain = Takes(), Takes()
    for module, techniques in ((ours, [lt.PreciseBatchNorm(batches=3)]), (plain, [])):
        torch.manual_seed(7)
        runner = trainer(*techniques, val_check_interval=2, max_epochs=2)
        runner.fit(module, build(), Loader(2, seed=9, fixed=True))
    assert_equal(ours.batches, plain.batches)
    assert_equal(parameters(ours), parameters(plain))


def test_a_module_without_moving_statistics_is_an_error():
    module = Toy()
    module.body[1] = nn.LayerNorm(8)
    with pytest.raises(ValueError, match="must have a BatchNorm .* got none in Toy: remove PreciseBatchNorm"):
        trainer(lt.PreciseBatchNorm()).fit(module, Loader())
    with pytest.raises(ValueError, match="must have a BatchNorm"):
        trainer(lt.PreciseBatchNorm(), lt.ReplaceNorm(to="frozen_batch")).fit(Toy(), Loader())


@pytest.mark.parametrize(("size", "told"), [(8, True), (16, False)])
def test_a_small_batch_is_a_warning(size, told, recwarn):
    data = TensorDataset(torch.randn(32, 4), torch.randint(0, 3, (32,)))
    trainer(lt.PreciseBatchNorm(batches=1), max_epochs=1).fit(Toy(), DataLoader(data, size))
    messages = [str(each.message) for each in recwarn if "BatchNorm" in str(each.message)]
    wanted = "BatchNorm should see at least 16 samples at a time, got 8: take larger batches, or"
    assert [message.startswith(wanted) for message in messages] == [True] * told
