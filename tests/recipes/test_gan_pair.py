"""Generator and critic: what they are built of, where samples come from, and that they can be trained."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest
from torch import nn

from lightning_tricks.objectives.latent import latent_noise
from lightning_tricks.recipes.gan_pair import Critic, Generator


def kinds(module):
    return {type(layer) for layer in module.modules()}


@pytest.mark.parametrize(
    ("upsampling", "layer"), [("shuffle", nn.PixelShuffle), ("transposed", nn.ConvTranspose2d)]
)
def test_the_generator_is_built_as_it_should_be(upsampling, layer):
    generator = Generator(upsampling=upsampling)
    assert {nn.LeakyReLU, nn.Tanh, nn.BatchNorm2d, layer} <= kinds(generator)
    assert isinstance(generator.head[-1], nn.Tanh)
    assert not {nn.ReLU, nn.MaxPool2d, nn.Upsample} & kinds(generator)
    assert len({nn.PixelShuffle, nn.ConvTranspose2d} & kinds(generator)) == 1


def test_the_critic_has_strides_and_neither_pooling_nor_norms():
    critic = Critic()
    assert kinds(critic) == {Critic, nn.Conv2d, nn.LeakyReLU, nn.Flatten, nn.Linear}
    assert [layer.stride for layer in critic if isinstance(layer, nn.Conv2d)] == [(2, 2), (2, 2)]


def test_a_score_is_a_samples_own():
    """A penalty on each sample's gradient needs that."""
    critic, images = Critic(width=4), torch.rand(3, 1, 8, 8, requires_grad=True)
    (slopes,) = torch.autograd.grad(critic(images)[1], images)
    assert slopes[1].any()
    assert not slopes[[0, 2]].any()


@pytest.mark.parametrize("law", ["gaussian", "sphere"])
def test_samples_lie_between_minus_one_and_one_and_are_the_seeds(law):
    generator = Generator(law=law).eval()

    def drawn(seed):
        return generator.sample(5, generator=torch.Generator().manual_seed(seed))

    assert drawn(1).shape == (5, 1, 8, 8)
    assert drawn(1).abs().max() <= 1.0
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_samples_have_the_weights_type():
    assert Generator().double().sample(2).dtype == torch.float64


def test_the_laws_of_latent_points():
    z = latent_noise(2000, 3, generator=torch.Generator().manual_seed(0))
    assert kstest(z.flatten(), "norm").pvalue > 0.01
    z = latent_noise(2000, 3, law="sphere", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.norm(dim=1), torch.full((2000,), 3**0.5))
    # On a sphere in three dimensions each coordinate is uniform (Archimedes).
    assert kstest(z[:, 0], "uniform", args=(-(3**0.5), 2 * 3**0.5)).pvalue > 0.01


def test_they_train_against_each_other():
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    real = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    generator, critic = Generator(width=8), Critic(width=8)
    steps = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.0, 0.9))
    critic_steps = torch.optim.Adam(critic.parameters(), lr=4e-3, betas=(0.0, 0.9))

    def look():
        """Return how far the mean sample is from the mean digit, and how much samples differ."""
        with torch.no_grad():
            samples = generator.eval().sample(500)
        generator.train()
        return (samples.mean(0) - real.mean(0)).abs().mean(), samples.std(0).mean()

    before, _ = look()
    for _ in range(150):
        batch = real[torch.randint(len(real), (64,))]
        critic_steps.zero_grad()
        fake = generator.sample(64).detach()
        ((1 - critic(batch)).relu().mean() + (1 + critic(fake)).relu().mean()).backward()
        critic_steps.step()
        steps.zero_grad()
        (-critic(generator.sample(64)).mean()).backward()
        steps.step()
    after, spread = look()
    assert after < 0.5 * before
    assert spread > 0.5 * real.std(0).mean()
