"""Progressive resizing: which sizes, by which filter, for which batches, beside what else changes them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lightning_tricks as lt
from lightning_tricks.objectives.progressive_resizing import resized, scaled_side
from tests.toys import Loader, Logged, trainer

RISING = "constant(0.5, over=2) >> linear(to=1.0, over=4)"


class Pictures(Loader):
    """Gives 8x12 images; each batch is a list of images, labels and other images."""

    def __iter__(self) -> Any:
        for inputs, labels in super().__iter__():
            generator = torch.Generator().manual_seed(self.done)
            images = torch.randn(len(inputs), 2, 8, 12, generator=generator)
            yield [images, labels, torch.randn(len(inputs), 1, 6, generator=generator)]


class Net(LightningModule):
    """Takes images of any size, and notes the sizes of what each stage gets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 3)
        self.seen: dict[str, list[list[Tensor]]] = {}

    def loss(self, batch: list[Tensor]) -> Tensor:
        self.seen.setdefault(self.trainer.state.stage.value, []).append(batch)
        return cross_entropy(self.head(self.body(batch[0]).mean((2, 3))), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def sizes(self, stage: str, at: int = 0) -> list[tuple[int, ...]]:
        return [tuple(batch[at].shape[2:]) for batch in self.seen[stage]]


def fitted(*techniques: Any, **settings: Any) -> Net:
    module = Net()
    runner = trainer(*techniques, **{"max_epochs": 2, "num_sanity_val_steps": 1, **settings})
    runner.fit(module, Pictures(), Pictures(2, seed=9, fixed=True))
    return module


def test_sides_are_the_nearest_multiples_and_no_longer_than_they_are() -> None:
    # By hand: 112 of 224 as in Composer's card; 0.6 * 224 = 134.4 lies between 128 and 160.
    assert scaled_side(224, scale=0.5, multiple=4) == 112
    assert scaled_side(224, scale=0.6, multiple=32) == 128
    assert scaled_side(30, scale=0.95, multiple=8) == 30  # the nearest, 32, is too long
    assert scaled_side(30, scale=1.0, multiple=8) == 30
    assert scaled_side(3, scale=0.5, multiple=8) == 3
    assert scaled_side(10**6, scale=1e-300, multiple=7) == 7


@pytest.mark.parametrize(("scale", "height", "width"), [(0.5, 12, 8), (0.7, 17, 11), (0.04, 1, 1)])
def test_images_are_those_of_pillow(scale: float, height: int, width: int) -> None:
    image = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
    expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    found = resized(torch.from_numpy(image)[None, None].expand(2, 3, -1, -1), scale=scale, multiple=1)
    torch.testing.assert_close(found, torch.from_numpy(expected.copy()).expand(2, 3, -1, -1))


def test_signals_by_hand() -> None:
    # A triangle of width 4 about the middle of each pair: weights 3/4, 3/4 and 1/4 at the ends.
    signal = torch.arange(8.0)[None, None]
    expected = torch.tensor([[[5 / 7, 2.5, 4.5, 44 / 7]]])
    torch.testing.assert_close(resized(signal, scale=0.5, multiple=1), expected)
    assert resized(torch.empty(0, 3, 8), scale=0.5, multiple=1).shape == (0, 3, 4)


def test_types_and_layout_stay() -> None:
    image = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    found = resized(image, scale=0.5, multiple=4)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        other = resized(image.to(dtype), scale=0.5, multiple=4)
        torch.testing.assert_close(other, found.to(dtype), rtol=2e-2, atol=2e-2)
    assert resized(image, scale=1.0, multiple=4) is image


@pytest.mark.parametrize("accumulated", [1, 2])
def test_training_sees_what_is_scheduled_and_evaluations_the_full_size(accumulated: int) -> None:
    logged = Logged("progressive_resizing")
    technique = lt.ProgressiveResizing(scale=RISING, multiple=2)
    module = fitted(technique, logged, accumulate_grad_batches=accumulated, limit_train_batches=4)
    # Of 8x12 by hand: 0.5, 0.5, 0.5, 0.625, 0.75, 0.875, 1, 1, with halves of pixels' pairs upwards.
    each = [(4, 6), (4, 6), (4, 6), (6, 8), (6, 10), (8, 10), (8, 12), (8, 12)]
    assert module.sizes("train") == [each[i // accumulated] for i in range(8)]
    assert logged.column("size") == [width for _, width in module.sizes("train")]
    assert logged.column("scale")[:2] == [0.5, 0.5]
    module.trainer.test(module, Pictures(2), verbose=False)
    assert set(module.sizes("validate") + module.sizes("test")) == {(8, 12)}
    assert set(module.sizes("train", 2)) == {(6,)}
    assert "on_after_batch_transfer" not in vars(module)
    plain = fitted(limit_train_batches=4)
    for (_, labels, _), (_, own, _) in zip(module.seen["train"], plain.seen["train"], strict=True):
        assert torch.equal(labels, own)


def test_statistics_are_estimated_anew_on_the_full_size() -> None:
    module = fitted(lt.ProgressiveResizing(scale=0.5), lt.PreciseBatchNorm(batches=3), max_epochs=1)
    assert module.sizes("train") == [(4, 8)] * 5 + [(8, 12)] * 6  # for validation, and at the end


@pytest.mark.parametrize("resizing_first", [True, False])
def test_what_is_mixed_has_its_size_already(resizing_first: bool) -> None:
    techniques = [lt.ProgressiveResizing(scale=RISING), lt.CutMix(classes=3)]
    module = fitted(*techniques if resizing_first else techniques[::-1], max_epochs=1)
    small = fitted(lt.ProgressiveResizing(scale=RISING), max_epochs=1)
    for (mixed, labels, _), (own, hard, _) in zip(module.seen["train"], small.seen["train"], strict=True):
        assert (mixed[:, None] == own).all(2).any(1).all()  # no pixel is a mean of two samples
        # Where both are of one class, all of the label is.
        kept, share = (mixed == own).all(1).float().mean((1, 2)), labels[torch.arange(8), hard]
        assert (torch.isclose(share, kept) | torch.isclose(share, torch.ones(8))).all()
    assert "on_after_batch_transfer" not in vars(module)


def test_a_copy_of_the_module_within_a_run_has_no_trainer_in_it() -> None:
    class Copies(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            memo: dict[int, Any] = {}
            deepcopy(pl_module, memo)
            assert id(trainer) not in memo

    fitted(lt.ProgressiveResizing(), Copies(), max_epochs=1)


def test_two_inputs_may_have_sizes_of_their_own_and_one_input_has_one() -> None:
    one, other = (lt.ProgressiveResizing(scale=0.5, multiple=1, inputs=at, label=f"of {at}") for at in (0, 2))
    module = fitted(one, other, max_epochs=1)
    assert set(module.sizes("train")) == {(4, 6)} and set(module.sizes("train", 2)) == {(3,)}
    with pytest.raises(lt.ConflictError, match="'size of 0 in a batch' must have one owner"):
        fitted(lt.ProgressiveResizing(), lt.ProgressiveResizing(label="again"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale": 0.0}, r"scale must lie in \(0.0, 1.0\], got 0.0"),
        ({"scale": "linear(to=1.5)"}, r"every value of scale must lie in \(0.0, 1.0\], got 1.5"),
        ({"multiple": 0}, "multiple must be at least 1, got 0"),
        (
            {"multiple": 12},
            r"multiple must be less than a side of the inputs, got 12 for shape \(8, 2, 8, 12\)",
        ),
        ({"inputs": 1.0}, "inputs must be a place or a key in a batch, got 1.0"),
        ({"inputs": 1}, "inputs must be floating to be resized, got torch.int64"),
        ({"inputs": "image"}, "inputs must be where a batch holds a tensor, got 'image' for a batch of list"),
    ],
)
def test_what_cannot_be_resized_has_a_named_error(settings: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        fitted(lt.ProgressiveResizing(**settings))


def test_rows_of_a_table_have_no_size() -> None:
    with pytest.raises(ValueError, match=r"must be images, .* got shape \(8, 4\)"):
        resized(torch.randn(8, 4), scale=1.0, multiple=1)


def test_steps_that_take_batches_themselves_are_refused() -> None:
    class Takes(Net):
        def training_step(self, dataloader_iter: Any) -> Tensor:
            return self.loss(next(dataloader_iter)[0])

    with pytest.raises(ValueError, match="got a dataloader_iter"), pytest.warns(match="dataloader_iter"):
        trainer(lt.ProgressiveResizing()).fit(Takes(), Pictures())
