"""What does not go together is refused before the first batch, or at it, with what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt
from lightning_tricks.lifecycle.strategies import check_copies
from tests.fuzz.verdicts import Batches
from tests.objectives.gan_toys import ImageGAN, PointGAN, SmallGAN, points
from tests.toys import trainer


def refusal(kind: type[Exception], gan: SmallGAN, loader: Any, message: str, *, batches: int = 0) -> None:
    seen = Batches()
    with pytest.raises(kind, match=message):
        trainer(seen, max_epochs=1).fit(gan, loader)
    assert seen.count == batches


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"generators": "generatr"},
            "generators must name networks of PointGAN, got 'generatr'; it has 'gener",
        ),
        ({"critics": ()}, r"critics must name at least one network, got \(\)"),
        ({"critics": "critic.1"}, "critics must name networks that can learn, got 'critic.1' without"),
        ({"critics": "generator"}, "generators and critics must share no parameters, but do"),
        (
            {"adversarial_loss": lt.Hinge(), "noisy_labels": lt.NoisyLabels()},
            "noisy_labels must be None with Hinge",
        ),
        ({"weight_clip": 0.0}, r"weight_clip must lie in \(0.0, inf\], got 0.0"),
        ({"n_critic": 0}, "n_critic must be at least 1, got 0"),
        ({"instance_noise": -0.1}, "instance_noise must .*-0.1"),
        (
            {"layer_noise": lt.LayerNoise(0.1, layers="critic")},
            "layers must match a layer of a generator.* 'critic'",
        ),
    ],
)
def test_settings_that_do_not_go_are_refused(settings: dict[str, Any], message: str) -> None:
    refusal(ValueError, PointGAN(**settings), points(), message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent": 16}, r"latent must be Latent\(...\), got 16"),
        ({"adversarial_loss": "hinge"}, r"must be NonSaturating\(\), Hinge\(\), .*, got 'hinge'"),
        ({"penalties": 10.0}, "penalties must be GradientPenalty, R1, R2 or several of them, got 10.0"),
        ({"noisy_labels": (0.7, 1.2)}, r"noisy_labels must be NoisyLabels\(...\) or None, got \(0.7, 1.2\)"),
    ],
)
def test_settings_of_another_type_are_refused(settings: dict[str, Any], message: str) -> None:
    refusal(TypeError, PointGAN(**settings), points(), message)


@pytest.mark.parametrize("penalty", [lt.GradientPenalty(), lt.R1()])
def test_a_penalty_refuses_a_critic_with_batchnorm_by_name(penalty: Any) -> None:
    gan = PointGAN(penalties=penalty)
    gan.critic = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    refusal(ValueError, gan, points(), f"no BatchNorm with {type(penalty).__name__}.* got 'critic.1'")


def test_a_penalty_refuses_a_compiled_critic() -> None:
    gan = PointGAN(penalties=lt.R1())
    gan.critic.compile(backend="aot_eager")
    refusal(ValueError, gan, points(), "critics must not be compiled with R1.*got 'critic'")


def test_noise_in_layers_refuses_a_compiled_generator() -> None:
    gan = PointGAN(layer_noise=lt.LayerNoise(0.1, layers="generator"))
    gan.generator.compile(backend="aot_eager")
    refusal(ValueError, gan, points(), "layer_noise must be None if generators are compiled, got 'generator'")


def test_optimizers_that_mix_the_players_are_refused() -> None:
    class Mixing(PointGAN):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.1)]

    refusal(
        ValueError, Mixing(), points(), "an optimizer must step all parameters of generators and no others"
    )


def test_callbacks_that_are_not_passed_on_are_missed() -> None:
    class Forgetful(PointGAN):
        def configure_callbacks(self) -> Any:
            return []

    refusal(RuntimeError, Forgetful(), points(), "configure_callbacks must return what that", batches=1)


def test_accumulation_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="accumulate_grad_batches must be 1 with GANMixin.* got 2: enlarge"):
        trainer(max_epochs=1, accumulate_grad_batches=2).fit(PointGAN(), points())


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (
            TypeError,
            torch.zeros(8, 1, 8, 8, dtype=torch.uint8),
            r"floating tensor of shape \(n, ...\), got torch.uint8",
        ),
        (TypeError, torch.zeros(8), r"got torch.float32 of shape \(8,\)"),
        (ValueError, torch.zeros(1, 1, 8, 8), "at least 2 samples for BatchNorm 'generator.up.0.1', got 1"),
        (ValueError, torch.zeros(8, 1, 4, 4), r"shaped as real ones, \(8, 1, 4, 4\), got \(8, 1, 8, 8\)"),
    ],
)
def test_samples_of_no_use_are_named_at_the_first_batch(kind: Any, data: Tensor, message: str) -> None:
    refusal(kind, ImageGAN(), DataLoader(TensorDataset(data), 8), message, batches=1)


def test_latent_points_that_do_not_fit_the_generator_are_told() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        trainer(max_epochs=1).fit(PointGAN(latent=lt.Latent(5)), points())
    assert "generator was given latent points of shape (8, 5), as latent says" in caught.value.__notes__


@pytest.mark.parametrize("signals", [lt.FailureSignals(), None])
def test_a_loss_that_is_nan_is_named_before_a_step(signals: Any) -> None:
    gan, data = PointGAN(failure_signals=signals), torch.randn(16, 2)
    data[11] = torch.nan
    seen = Batches()
    with pytest.raises(ValueError, match="critic_loss must be finite, got nan: "):
        trainer(seen, max_epochs=1, log_every_n_steps=100).fit(gan, DataLoader(TensorDataset(data), 8))
    assert seen.count == 2
    assert all(p.isfinite().all() for p in gan.parameters())


def test_a_batch_of_names_says_what_to_override() -> None:
    data = [{"image": torch.zeros(1, 8, 8)} for _ in range(8)]
    refusal(TypeError, ImageGAN(), DataLoader(data, 8), "got dict: override real_samples", batches=1)


def test_one_sample_is_enough_without_batchnorm() -> None:
    trainer(max_epochs=1).fit(PointGAN(), points(2, 1))


def test_pictures_of_what_is_no_image_are_refused() -> None:
    gan = PointGAN(sample_grid=lt.SampleGrid(folder="nowhere"))
    with pytest.raises(ValueError, match=r"sample_grid must be None unless.*got \(64, 2\)"):
        trainer(max_epochs=1).fit(gan, points())


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: lt.Player("Adm", lr=0.1), ValueError, "got 'Adm'; did you mean 'Adam'?"),
        (lambda: lt.Player("LBFGS", lr=0.1), ValueError, "must step without a closure, got LBFGS"),
        (lambda: lt.Player("Adam", lr=0.0), ValueError, r"lr must lie in \(0.0, "),
        (
            lambda: lt.Player("SGD", lr=0.1, options={"beta": 1}),
            ValueError,
            "options must be an option of SGD",
        ),
        (lambda: lt.Latent(0), ValueError, "size must be at least 1, got 0"),
        (lambda: lt.Latent(2, law="uniform"), ValueError, "law must be one of 'gaussian', 'sphere'"),
        (lambda: lt.LayerNoise(-1.0, layers="generator"), ValueError, "std must "),
        (lambda: lt.SampleGrid(0), ValueError, "count must be at least 1, got 0"),
        (lambda: lt.FailureSignals(window=2), ValueError, "window must be at least 3, got 2"),
        (lambda: lt.FailureSignals(variance=1.0), ValueError, r"variance must lie in \(0.0, 1.0\)"),
    ],
)
def test_policies_check_their_settings(build: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        build()


def test_it_must_come_before_what_has_a_training_step_of_its_own() -> None:
    with pytest.raises(TypeError, match="Late must inherit GANMixin before LightningModule"):

        class Late(LightningModule, lt.GANMixin):
            pass


def test_a_hook_that_averages_gradients_in_its_own_way_is_refused() -> None:
    hooked = SimpleNamespace(strategy=DDPStrategy(ddp_comm_hook=allreduce_hook))
    with pytest.raises(ValueError, match="ddp_comm_hook must be None with GANMixin"):
        check_copies(hooked, "GANMixin")  # type: ignore[arg-type]
    check_copies(SimpleNamespace(strategy=DDPStrategy()), "GANMixin")  # type: ignore[arg-type]


def test_weights_that_a_network_does_not_use_stay_as_they_are() -> None:
    gan = PointGAN()
    gan.critic.unused = nn.Linear(1, 1)
    gan.critic.forward = lambda x: nn.Sequential.forward(gan.critic[:3], x)  # type: ignore[method-assign]
    before = gan.critic.unused.weight.detach().clone()
    trainer(max_epochs=1).fit(gan, points())
    assert torch.equal(gan.critic.unused.weight, before)
