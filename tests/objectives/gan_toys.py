"""Small GANs of points and of images, and data for them."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt
from lightning_tricks.recipes.gan_pair import Critic, Generator
from tests.toys import seed


def points(batches: int = 4, size: int = 8) -> DataLoader[Any]:
    """Return a loader of points in two dimensions, always in the same order."""
    draws = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(batches * size, 2, generator=draws)), size)


def images(batches: int = 2, size: int = 8) -> DataLoader[Any]:
    """Return a loader of images in [-1, 1], with a number for each."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.rand(batches * size, 1, 8, 8, generator=draws) * 2 - 1
    return DataLoader(TensorDataset(pixels, torch.arange(float(batches * size))), size)


class SmallGAN(lt.GANMixin, LightningModule):
    """Takes settings by name, and callbacks that come after the mixin's own."""

    def __init__(self, *callbacks: Callback, **settings: Any) -> None:
        super().__init__()
        seed(0)
        self.callbacks = callbacks
        for name, value in settings.items():
            setattr(self, name, value)

    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), *self.callbacks]


class PointGAN(SmallGAN):
    """Points in two dimensions."""

    latent = lt.Latent(3)
    generator_optimizer = lt.Player("SGD", lr=0.1)
    critic_optimizer = lt.Player("Adam", lr=0.01)

    def __init__(self, *callbacks: Callback, **settings: Any) -> None:
        super().__init__(*callbacks, **settings)
        self.generator = nn.Sequential(nn.Linear(3, 6), nn.LeakyReLU(0.2), nn.Linear(6, 2))
        self.critic = nn.Sequential(nn.Linear(2, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1))
        self.other_generator = nn.Linear(3, 2)
        self.other_critic = nn.Linear(2, 1)


class ImageGAN(SmallGAN):
    """Images of 8x8 pixels."""

    latent = lt.Latent(4)

    def __init__(self, *callbacks: Callback, **settings: Any) -> None:
        super().__init__(*callbacks)
        self.generator = Generator(latent=4, width=4)
        self.critic = Critic(width=4)
        for name, value in settings.items():
            setattr(self, name, value)
