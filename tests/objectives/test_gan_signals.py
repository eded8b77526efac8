"""Signs of failure: the numbers, what a run of each failure is told, and that a sound one is told nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt
from lightning_tricks.objectives.gan_architecture import doubtful_layers, doubtful_output, doubtful_range
from lightning_tricks.objectives.gan_signals import falls_steadily, relative_change, variance_share
from lightning_tricks.recipes.gan_pair import Critic, Generator
from tests.objectives.gan_toys import ImageGAN, PointGAN, images, points
from tests.toys import SaveAfter, trainer

SIGNALS = lt.FailureSignals(start=0, window=4)
SOUND = {"critic_loss": [1.2] * 4, "generator_loss": [0.7] * 4, "variance": [0.9] * 4, "change": [0.5] * 4}


@pytest.mark.parametrize(
    ("seen", "kinds"),
    [
        ({}, set()),
        ({"critic_loss": [0.6, 0.63, 0.64, 0.62]}, {"floor"}),  # with a floor of 0.62 and 1.38 for the blind
        ({"critic_loss": [0.6, 0.7, 0.64, 0.62]}, set()),
        ({"critic_loss": [0.6] * 3}, set()),
        ({"gradient_norm": [1.0, 101.0]}, {"gradients"}),
        ({"gradient_norm": [101.0, 1.0]}, set()),
        ({"generator_loss": [4.0, 3.0, 2.0, 1.0], "change": [0.01] * 4}, {"garbage"}),
        ({"generator_loss": [4.0, 3.0, 2.0, 1.0]}, set()),  # samples change
        ({"generator_loss": [4.0, 1.0, 3.0, 2.0], "change": [0.01] * 4}, set()),
        ({"variance": [0.04] * 4}, {"collapse"}),
        ({"variance": [0.04, 0.06, 0.04, 0.04]}, set()),
    ],
)
def test_signs_and_what_is_none(seen: dict[str, list[float]], kinds: set[str]) -> None:
    assert SIGNALS.found({**SOUND, **seen}, 0.62, 1.38).keys() == kinds


def test_a_loss_without_floor_has_no_sign_of_it() -> None:
    assert SIGNALS.found({**SOUND, "critic_loss": [-50.0] * 4}, None, 0.0) == {}


def test_numbers_by_hand() -> None:
    real = torch.tensor([[0.0, 0.0], [2.0, 4.0]])  # variances 2 and 8
    assert variance_share(real / 2, real).item() == 0.25
    assert variance_share(real[:1].expand(2, 2), real).item() == 0.0
    assert relative_change(real + 1, real).item() == pytest.approx(1 / (11 / 4) ** 0.5)
    assert falls_steadily([-1.0, -2.0, -3.0]) and not falls_steadily([3.0, float("nan"), 1.0])
    assert not falls_steadily([10.0, 9.99, 9.98]) and not falls_steadily([2.0, 1.0])


def told(gan: Any, loader: Any, **settings: Any) -> list[str]:
    """Return what a run of ``gan`` warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(**{"max_epochs": 1, **settings}).fit(gan, loader)
    return [str(each.message) for each in caught if "GANMixin: " in str(each.message)]


FAR = DataLoader(TensorDataset(torch.randn(128, 2, generator=torch.Generator().manual_seed(0)) + 100.0), 8)
WINS = {"critic_optimizer": lt.Player("Adam", lr=0.1), "generator_optimizer": lt.Player("SGD", lr=1e-4)}


def test_a_critic_that_wins_is_named_once() -> None:
    signals = lt.FailureSignals(start=0, window=4, variance=1e-9)
    (words,) = told(PointGAN(failure_signals=signals, **WINS), FAR)
    assert "the critic wins: its loss stays below 0.0693, with a floor of 0, and" in words
    assert told(PointGAN(failure_signals=None, **WINS), FAR) == []


def test_exploding_gradients_and_collapsed_modes_are_named() -> None:
    class Constant(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(0 * z)

    gan = PointGAN(failure_signals=SIGNALS, generators="constant", adversarial_loss=lt.LeastSquares())
    gan.constant = Constant(3, 2)
    words = told(gan, points(8))
    assert len(words) == 1 and "modes collapse: samples vary by 0 of what real ones do" in words[0]
    steep = PointGAN()
    with torch.no_grad():
        steep.critic[2].weight.mul_(1e4)
    (words,) = told(steep, points(2))
    assert "gradients explode: their norm is" in words


def test_a_loss_that_falls_for_garbage_is_named() -> None:
    class Still(nn.Linear):
        """Moves by a hair."""

        def forward(self, z: Tensor) -> Tensor:
            return torch.stack([z[:, 0], z[:, 0] + 1e-3 * self.bias[0]], 1)

    class Steep(nn.Linear):
        """Makes much of it."""

        def forward(self, x: Tensor) -> Tensor:
            return 1e3 * (x[:, 1] - x[:, 0]) + 0 * super().forward(x)[:, 0]

    gan = PointGAN(generators="still", critics="steep", adversarial_loss=lt.Wasserstein())
    gan.failure_signals = lt.FailureSignals(start=0, window=4, gradient_norm=1e6)
    gan.still, gan.steep = Still(3, 2), Steep(2, 1)
    gan.generator_optimizer = lt.Player("SGD", lr=1.0)
    (words,) = told(gan, points(24))
    assert "the generator's loss falls steadily while its samples do not change" in words


def test_signs_go_on_over_a_resumed_run(tmp_path: Path) -> None:
    signals = lt.FailureSignals(start=0, window=20, variance=1e-9)
    saves = SaveAfter(12, tmp_path / "a.ckpt")
    trainer(saves, max_epochs=1).fit(PointGAN(failure_signals=signals, **WINS), FAR)
    with pytest.warns(UserWarning, match="the critic wins"):
        runner = trainer(max_epochs=2, limit_train_batches=12)
        runner.fit(PointGAN(failure_signals=signals, **WINS), FAR, ckpt_path=tmp_path / "a.ckpt")


def test_what_speaks_against_an_architecture_is_named() -> None:
    layers = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2)), nn.ReLU6())
    (relu, pooling) = doubtful_layers("critic", layers)
    assert "'critic.0', 'critic.2' is ReLU" in relu
    assert "'critic.1.1' is max-pooling" in pooling
    assert not list(doubtful_layers("generator", Generator())) and not list(doubtful_layers("c", Critic()))


def test_what_never_learns_says_so() -> None:
    class Own(PointGAN):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            pass

    (words,) = told(Own(), points())
    assert words.startswith("GANMixin: the first batch did not call training_step of GANMixin")
    (words,) = told(PointGAN(n_critic=50), points())
    assert words == "GANMixin: n_critic must be at most the batches of the run for generators to step, got 50"


def test_scores_that_are_squashed_are_named() -> None:
    gan = PointGAN()
    gan.critic.append(nn.Sigmoid())
    (words,) = told(gan, points())
    assert words == "GANMixin: critics return scores of any size, but 'critic.3' is Sigmoid: leave it out"


def test_a_tanh_is_seen_in_whatever_way_it_is_written() -> None:
    class Written(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z).tanh().reshape(-1, 1, 2, 2)

    z, bare = torch.zeros(2, 3), nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (1, 2, 2)))
    for network in (
        Written(3, 4),
        nn.Sequential(*bare, nn.Tanh()),
        nn.Sequential(bare[0], nn.Tanh(), bare[1]),
    ):
        assert doubtful_output("generator", network, network(z)) is None
    assert "does not after 'generator.1'" in str(doubtful_output("generator", bare, bare(z)))
    compiled = torch.compile(bare, backend="aot_eager")
    assert doubtful_output("generator", compiled, compiled(z)) is None  # type: ignore[arg-type, operator]


def test_the_range_of_images() -> None:
    assert doubtful_range(torch.tensor([-1.0, 1.0])) is None
    assert "lie in [0, 255]" in str(doubtful_range(torch.tensor([0.0, 255.0])))


def test_a_run_tells_of_its_architecture_once_and_a_sound_one_of_nothing() -> None:
    gan = ImageGAN()
    gan.generator.head = nn.Sequential(nn.Conv2d(4, 1, 3, padding=1))
    gan.critic[1] = nn.ReLU()
    pixels = DataLoader(TensorDataset(torch.rand(16, 1, 8, 8) * 255), 8)
    words = told(gan, pixels)
    assert [text.split(": ")[1].split(",")[0] for text in words] == [
        "LeakyReLU lets gradients through everywhere",
        "real images should lie in [-1",
        "a generator of images should end in tanh",
    ]
    assert "'critic.1' is ReLU" in words[0] and "'generator.head.0'" in words[2]
    assert told(ImageGAN(), images()) == []
