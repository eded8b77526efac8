"""Turns and steps of a GAN against a training loop written out, and what goes together with it."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import nn

import lightning_tricks as lt
from lightning_tricks.core.seeds import seed_of
from lightning_tricks.objectives import gan_run
from tests.host_reads import HostReads
from tests.objectives.gan_toys import ImageGAN, PointGAN, images, points
from tests.toys import Logged, assert_equal, trainer, weights


def written_out(gan: PointGAN, *, noise: float, epochs: int) -> None:
    """Train with n_critic=2, the non-saturating loss, R1 of weight 3, in plain torch."""
    steps = torch.optim.SGD(gan.generator.parameters(), lr=0.1)
    critic_steps = torch.optim.Adam(gan.critic.parameters(), lr=0.01)
    for step, (real,) in enumerate(batch for _ in range(epochs) for batch in points()):
        draws = torch.Generator().manual_seed(seed_of(7, step, 0))
        fake = gan.generator(torch.randn(8, 3, generator=draws)).detach()
        real = (real + noise * torch.randn(8, 2, generator=draws)).requires_grad_()
        fake = fake + noise * torch.randn(8, 2, generator=draws)
        scores = gan.critic(real)
        loss = F.softplus(-scores).mean() + F.softplus(gan.critic(fake)).mean()
        (gradients,) = torch.autograd.grad(gan.critic(real).sum(), real, create_graph=True)
        critic_steps.zero_grad()
        (loss + 3 / 2 * gradients.square().sum(1).mean()).backward()
        critic_steps.step()
        if step % 2 == 1:
            fake = gan.generator(torch.randn(8, 3, generator=draws))
            steps.zero_grad()
            F.softplus(-gan.critic(fake + noise * torch.randn(8, 2, generator=draws))).mean().backward()
            steps.step()


def test_a_run_is_the_loop_written_out():
    gan, expected = PointGAN(n_critic=2, penalties=lt.R1(3.0), instance_noise=0.1, gan_seed=7), PointGAN()
    trainer(max_epochs=3).fit(gan, points())
    written_out(expected, noise=0.1, epochs=3)
    for name, value in weights(gan).items():
        torch.testing.assert_close(value, weights(expected)[name], rtol=1e-5, atol=1e-6)


def test_a_player_steps_alone_and_leaves_the_others_gradients():
    """After the critic's last step only the generator learnt: the critic's gradient is its own step's."""
    gan = PointGAN(critic_optimizer=lt.Player("SGD", lr=1.0))
    before = gan.critic[2].bias.detach().clone()
    trainer(max_epochs=1, limit_train_batches=1).fit(gan, points())
    moved = before - gan.critic[2].bias.detach()
    torch.testing.assert_close(moved, gan.critic[2].bias.grad)


def test_each_of_several_critics_steps_as_it_would_alone():
    alone, together = PointGAN(), PointGAN(critics=("critic", "other_critic"))
    for gan in (alone, together):
        trainer(max_epochs=1, limit_train_batches=1).fit(gan, points())
    assert_equal(weights(alone.critic), weights(together.critic))
    assert (together.other_critic.weight != alone.other_critic.weight).any()


def test_all_generators_learn_and_critics_see_what_each_makes():
    gan = PointGAN(generators=["generator", "other_generator"], noisy_labels=lt.NoisyLabels())
    before = weights(gan)
    runner = trainer(max_epochs=2)
    runner.fit(gan, points())
    names = ("generator.0.weight", "other_generator.weight", "critic.0.weight")
    assert all(not torch.equal(before[name], gan.state_dict()[name]) for name in names)
    assert torch.equal(before["other_critic.weight"], gan.other_critic.weight)


@pytest.mark.parametrize(
    "settings",
    [
        {"adversarial_loss": lt.Hinge(), "penalties": [lt.GradientPenalty(), lt.R2(1.0)]},
        {"adversarial_loss": lt.LeastSquares(), "noisy_labels": lt.NoisyLabels(flipped=0.1)},
        {"adversarial_loss": lt.Wasserstein(), "weight_clip": 0.01, "n_critic": 3},
        {
            "layer_noise": lt.LayerNoise("linear(to=0.0)", layers="generator.1"),
            "instance_noise": "linear(to=0)",
        },
        {"latent": lt.Latent(3, law="sphere"), "critic_optimizer": lt.Player(torch.optim.RMSprop, lr=0.01)},
    ],
)
def test_every_choice_trains_and_what_is_drawn_is_the_seeds(settings):
    results = []
    for seed in (0, 0, 1):
        gan = PointGAN(**settings, gan_seed=seed)
        trainer(max_epochs=2).fit(gan, points())
        assert all(value.isfinite().all() for value in weights(gan).values())
        results.append(weights(gan))
    assert_equal(*results[:2])
    with pytest.raises(AssertionError):
        assert_equal(*results[1:])
    if "weight_clip" in settings:
        assert max(p.abs().max() for p in gan.critic.parameters()) <= 0.01


def test_noise_fades_by_the_schedules_and_is_logged():
    logged, layers = Logged("gan"), lt.LayerNoise("linear(to=0.0)", layers="generator.1")
    gan = PointGAN(logged, instance_noise="0.5 * linear(to=0.0)", layer_noise=layers)
    trainer(max_epochs=2).fit(gan, points())
    assert logged.column("layer_noise") == pytest.approx([1 - step / 8 for step in range(8)])
    assert logged.column("instance_noise") == pytest.approx([0.5 - step / 16 for step in range(8)])
    assert not any(part._forward_hooks for part in gan.modules())


def test_numbers_are_logged_by_name_on_steps_that_log_only():
    logged = Logged("gan")
    trainer(max_epochs=1, log_every_n_steps=4).fit(PointGAN(logged, penalties=lt.R1()), points(8))
    own = [sorted(name for name in row if name.startswith("gan/")) for row in logged.rows]
    numbers = ["critic_loss", "generator_loss", "gradient_norm/critic", "gradient_norm/generator", "penalty"]
    assert own[:3] == [[]] * 3 and own[3] == [f"gan/{name}" for name in [*numbers, "variance"]]
    assert logged.rows[3:7] == [logged.rows[3]] * 4 != logged.rows[7:]


def test_a_step_that_does_not_log_reads_nothing_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gan_run, "read_freely", lambda tensor: False)  # as on a GPU
    counts = []
    for batches in (20, 40):
        settings: dict[str, Any] = {
            "penalties": lt.GradientPenalty(),
            "instance_noise": 0.1,
            "noisy_labels": lt.NoisyLabels(),
            "critic_optimizer": lt.Player("SGD", lr=0.1),
        }
        with HostReads() as reads:
            trainer(max_epochs=1, log_every_n_steps=1000).fit(PointGAN(**settings), points(batches))
        counts.append(reads.count)
    assert counts[0] == counts[1]


def test_our_clipping_works_on_each_players_step():
    player, logged = lt.Player("SGD", lr=1.0), Logged("gan")
    gan = PointGAN(logged, critic_optimizer=player, generator_optimizer=player)
    before = weights(gan)
    runner = trainer(lt.GradientClip(max_norm=1e-3), max_epochs=1, limit_train_batches=1)
    runner.fit(gan, points())
    for name in ("generator", "critic"):
        moved = [(p - before[f"{name}.{at}"]).norm() for at, p in getattr(gan, name).named_parameters()]
        assert torch.stack(moved).norm().item() == pytest.approx(1e-3, rel=1e-3)
        assert logged.column(f"gradient_norm/{name}")[0] > 1e-3  # that before clipping


def test_rates_and_averages_are_those_of_batches():
    gan = PointGAN(n_critic=2, generator_optimizer=lt.Player("SGD", lr=0.1))
    average = lt.EMAWeights(decay=0.5, decay_warmup=False, params="generator")
    rates: list[float] = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[1].param_groups[0]["lr"])

    rate = lt.LearningRate(schedule="linear(to=0.0)")
    trainer(rate, average, Rates(), max_epochs=2).fit(gan, points())
    assert rates == pytest.approx([0.1 * (1 - step / 8) for step in range(8)])
    assert average.average().keys() == {f"generator.{name}" for name in gan.generator.state_dict()}


def test_optimizer_mixin_may_configure_the_players():
    class Both(lt.OptimizerMixin, PointGAN):
        optimizer_settings = (
            lt.OptimizerSettings("AdamW", lr=0.01, params="generator"),
            lt.OptimizerSettings("RMSprop", lr=0.02, params="critic"),
        )

        def __init__(self) -> None:
            super().__init__()
            del self.other_critic, self.other_generator

    gan = Both()
    before, runner = weights(gan), trainer(max_epochs=1)
    runner.fit(gan, points())
    assert [type(each).__name__ for each in runner.optimizers] == ["AdamW", "RMSprop"]
    assert all(not torch.equal(before[name], value) for name, value in weights(gan).items())


def test_frozen_players_stand_still_and_the_others_play_on():
    gan = PointGAN()
    before = weights(gan.generator)
    trainer(lt.Freeze(params="generator"), max_epochs=1).fit(gan, points())
    assert_equal(before, weights(gan.generator))


def test_a_second_fit_and_evaluations_bring_nothing_along_twice():
    gan, runner = PointGAN(), trainer(max_epochs=1)
    gan.validation_step = lambda batch, batch_idx: None  # type: ignore[method-assign]
    runner.fit(gan, points())
    callbacks = list(runner.callbacks)
    runner.validate(gan, points(), verbose=False)
    runner.fit_loop.max_epochs = 2
    runner.fit(gan, points())
    assert runner.callbacks == callbacks


@pytest.mark.parametrize("copy", [deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_a_copy_after_a_run_trains_on_as_the_original_does(copy):
    pair = PointGAN(), trainer(max_epochs=1)
    pair[1].fit(pair[0], points())
    results = []
    for gan, runner in (copy(pair), pair):
        runner.fit_loop.max_epochs = 2
        runner.fit(gan, points())
        results.append(weights(gan))
    assert_equal(*results)


def test_another_module_of_the_same_trainer_is_left_alone():
    from tests.toys import Loader, Toy

    runner = trainer(max_epochs=1)
    runner.fit(PointGAN(), points())
    runner.fit_loop.max_epochs = 2
    runner.fit(Toy(), Loader())


def test_a_compiled_critic_trains_as_it_does_uncompiled():
    results = []
    for compile in (False, True):
        gan = PointGAN(instance_noise=0.1)
        if compile:
            gan.critic.compile(backend="aot_eager")
            gan.generator.compile(backend="aot_eager")
        trainer(max_epochs=2).fit(gan, points())
        results.append(weights(gan))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name])


def test_spectral_norm_and_conditions_go_with_it():
    class Conditional(ImageGAN):
        def make(self, generator: nn.Module, z: torch.Tensor, batch: Any) -> torch.Tensor:
            made: torch.Tensor = generator(z if batch is None else z + batch[1][:, None])
            return made

    gan = Conditional(adversarial_loss=lt.Hinge())
    trainer(lt.SpectralNorm(params="critic"), max_epochs=1).fit(gan, images())
    assert gan(torch.zeros(2, 4)).shape == (2, 1, 8, 8)
