"""Pictures of samples: their pixels, the file, whose weights they show and who gets them."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor

import lightning_tricks as lt
from lightning_tricks.objectives.sample_grid import image_grid, png
from tests.objectives.gan_toys import ImageGAN, images
from tests.toys import trainer


def test_images_stand_in_rows_with_gaps() -> None:
    ones = torch.ones(3, 1, 2, 2)
    white, black = 255, 0
    expected = [
        [white, white, black, white, white],
        [white, white, black, white, white],
        [black, black, black, black, black],
        [white, white, black, black, black],
        [white, white, black, black, black],
    ]
    assert image_grid(ones, columns=2).tolist() == [expected]
    assert image_grid(torch.tensor([-7.0, 7.0]).reshape(2, 1, 1, 1), columns=2, gap=0).tolist() == [
        [[0, 255]]
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_is_read_back_by_another_program(channels: int) -> None:
    picture = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    read = matplotlib.image.imread(io.BytesIO(png(picture)), format="png")
    pixels = np.round(read * 255).astype(np.uint8).reshape(5, 7, -1)
    assert torch.equal(torch.from_numpy(pixels).permute(2, 0, 1), picture)


class Pictures(Logger):
    """Takes pictures as W&B or as TensorBoard does."""

    def __init__(self, *, like_wandb: bool) -> None:
        super().__init__()
        self.taken: list[tuple[str, Tensor, int]] = []
        if like_wandb:
            self.log_image = self._images
        self.board = SimpleNamespace(add_image=self._image)

    def _images(self, key: str, images: list[Any], step: int) -> None:
        self.taken.append((key, torch.from_numpy(images[0]).permute(2, 0, 1), step))

    def _image(self, tag: str, image: Tensor, step: int) -> None:
        self.taken.append((tag, image, step))

    @property
    def experiment(self) -> Any:
        return self.board

    @property
    def name(self) -> str:
        return "pictures"

    version = 0

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


@pytest.mark.parametrize("like_wandb", [True, False])
def test_loggers_that_take_pictures_get_them_and_no_file_is_written(like_wandb: bool, tmp_path: Path) -> None:
    logger = Pictures(like_wandb=like_wandb)
    gan = ImageGAN(sample_grid=lt.SampleGrid(4, columns=2, every_n_epochs=2))
    trainer(max_epochs=4, logger=logger, default_root_dir=tmp_path).fit(gan, images())
    assert [(name, tuple(picture.shape), step) for name, picture, step in logger.taken] == [
        ("gan/samples", (1, 17, 17), 8),
        ("gan/samples", (1, 17, 17), 16),
    ]
    assert not torch.equal(logger.taken[0][1], logger.taken[1][1])
    assert not list(tmp_path.rglob("*.png"))


def test_a_file_is_written_beside_what_another_logger_writes_or_where_it_is_told_to(tmp_path: Path) -> None:
    runner = trainer(max_epochs=1, logger=CSVLogger(tmp_path), default_root_dir=tmp_path)
    runner.fit(ImageGAN(sample_grid=lt.SampleGrid(4)), images())
    assert (Path(str(runner.log_dir)) / "samples" / "epoch-0000.png").exists()
    grid = lt.SampleGrid(4, folder=str(tmp_path / "own"))
    trainer(max_epochs=2).fit(ImageGAN(sample_grid=grid), images())
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["epoch-0000.png", "epoch-0001.png"]


def test_a_picture_shows_the_average_and_the_same_points(tmp_path: Path) -> None:
    shown = {}
    for name, techniques in (
        ("live", []),
        ("average", [lt.EMAWeights(decay=1.0, decay_warmup=False, params="generator")]),
        ("apart", [lt.EMAWeights(decay=1.0, decay_warmup=False, evaluate=False, label="apart")]),
    ):
        gan = ImageGAN(sample_grid=lt.SampleGrid(4, folder=str(tmp_path / name)))
        modes = {part: part.training for part in gan.modules()}
        gan.generator_optimizer = lt.Player("SGD", lr=1.0)
        trainer(*techniques, max_epochs=2).fit(gan, images())
        assert modes == {part: part.training for part in gan.modules()}
        shown[name] = [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]
    # Of an average that forgets nothing, the weights are the first ones.
    assert shown["apart"] == shown["live"]
    assert all(one != other for one, other in zip(shown["average"], shown["live"], strict=True))
