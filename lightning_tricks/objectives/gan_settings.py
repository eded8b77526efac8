"""What the settings of a GAN may be."""

from __future__ import annotations

from typing import Any

from lightning_tricks.core import checks
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.objectives.adversarial_labels import NoisyLabels
from lightning_tricks.objectives.adversarial_losses import AdversarialLoss
from lightning_tricks.objectives.gan_player import Player
from lightning_tricks.objectives.gan_players import penalties_of
from lightning_tricks.objectives.gan_signals import FailureSignals
from lightning_tricks.objectives.latent import Latent
from lightning_tricks.objectives.layer_noise import LayerNoise
from lightning_tricks.objectives.sample_grid import SampleGrid

__all__ = ["check_settings"]


_KINDS: dict[str, tuple[Any, str]] = {
    "latent": (Latent, "Latent(...)"),
    "adversarial_loss": (AdversarialLoss, "NonSaturating(), Hinge(), LeastSquares() or Wasserstein()"),
    "generator_optimizer": (Player, "Player(...)"),
    "critic_optimizer": (Player, "Player(...)"),
    "noisy_labels": (NoisyLabels | None, "NoisyLabels(...) or None"),
    "layer_noise": (LayerNoise | None, "LayerNoise(...) or None"),
    "failure_signals": (FailureSignals | None, "FailureSignals(...) or None"),
    "sample_grid": (SampleGrid | None, "SampleGrid(...) or None"),
}


def check_settings(module: Any, accumulate_grad_batches: int) -> None:
    """Check the attributes by which ``module`` says how it is trained.

    Args:
        module: A module with GANMixin.
        accumulate_grad_batches: That of the run.

    Raises:
        TypeError: If one is of a wrong type.
        ValueError: If one is out of its range, or does not go with another.
    """
    if accumulate_grad_batches != 1:
        raise ValueError(
            "accumulate_grad_batches must be 1 with GANMixin, whose players take turns, got "
            f"{accumulate_grad_batches}: enlarge the batch"
        )
    for name, (kind, told) in _KINDS.items():
        if not isinstance(getattr(module, name), kind):
            raise TypeError(f"{name} must be {told}, got {getattr(module, name)!r}")
    if module.noisy_labels is not None and not module.adversarial_loss.takes_labels:
        kind_of_loss = type(module.adversarial_loss).__name__
        raise ValueError(f"noisy_labels must be None with {kind_of_loss}, which has no labels")
    if module.weight_clip is not None:
        checks.in_range("weight_clip", module.weight_clip, 0.0, open_low=True)
    checks.whole("n_critic", module.n_critic, 1)
    checks.whole("gan_seed", module.gan_seed)
    as_schedule("instance_noise", module.instance_noise, 0.0, 1e6)
    penalties_of(module.penalties)
