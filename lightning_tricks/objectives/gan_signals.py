"""Signs that adversarial training fails, from numbers of the last steps.

References: Chintala et al., "How to Train a GAN?", 2016, https://github.com/soumith/ganhacks, hint 10; Karras
et al., "Progressive Growing of GANs for Improved Quality, Stability, and Variation", 2018,
https://arxiv.org/abs/1710.10196, section 3, for the spread of features over a batch as a sign of collapse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tricks.core import checks

__all__ = ["FailureSignals", "falls_steadily", "relative_change", "variance_share"]


def falls_steadily(values: Sequence[float]) -> bool:
    """Return whether ``values`` fall, by a tenth of their size at least, along nearly a line.

    Example:
        >>> falls_steadily([4.0, 3.0, 2.1, 1.0]), falls_steadily([4.0, 1.0, 3.0, 2.0])
        (True, False)
    """
    if len(values) < 3 or not all(map(math.isfinite, values)):
        return False
    size = max(map(abs, values))
    if values[0] - values[-1] <= 0.1 * size:
        return False
    series = torch.tensor([range(len(values)), values], dtype=torch.float64)
    return torch.corrcoef(series)[0, 1].item() < -0.95


def check_finite(name: str, number: Tensor | float) -> None:
    """Accept a loss that is a number; waits for its device.

    Raises:
        ValueError: If it is NaN or infinite.
    """
    if not math.isfinite(value := float(number)):
        raise ValueError(
            f"{name} must be finite, got {value}: look for NaN in the data, lower the rates or clip gradients"
        )


def relative_change(samples: Tensor, before: Tensor) -> Tensor:
    """Return the mean distance of entries from ``before``, over the spread of all there, a 0-d tensor.

    Example:
        >>> relative_change(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0]))
        tensor(1.)
    """
    spread = before.float().std(correction=0).clamp(min=1e-12)
    return (samples.float() - before.float()).abs().mean() / spread


def variance_share(fake: Tensor, real: Tensor) -> Tensor:
    """Return the variance of features over fake samples, as a share of that over real ones, a 0-d tensor.

    Args:
        fake: Features, shape (n, ...), n at least 2; variances are added over all features.
        real: Of the same shape but for n.

    Example:
        >>> real, fake = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [6.0]])
        >>> variance_share(fake, real)
        tensor(0.2500)
    """
    own, other = (each.detach().float().flatten(1).var(0).sum() for each in (fake, real))
    return own / other.clamp(min=1e-12)


@dataclass(frozen=True, kw_only=True)
class FailureSignals:
    """From where on a GAN is said to fail; each sign is told once in a run.

    Args:
        start: Training batches before which a generator has not learnt enough to judge it, at least 0; only
            gradients are looked at from the first.
        window: Steps that are logged, over which a sign must hold, at least 3.
        near_floor: The critic wins if its loss stays below its floor plus this share of the way to the loss
            of a critic that cannot tell fake from real; in (0, 1).
        gradient_norm: Norm of a player's gradients above which they explode, above 0.
        variance: Samples have collapsed if their features vary by less than this share of real ones; in
            (0, 1).
        still: Samples do not change if, over the window, they move by less than this share of their spread;
            above 0. It is a sign of failure while the generator's loss falls steadily.
    """

    start: int = 200
    window: int = 10
    near_floor: float = 0.05
    gradient_norm: float = 100.0
    variance: float = 0.05
    still: float = 0.05

    def __post_init__(self) -> None:
        """Check the settings."""
        checks.whole("start", self.start)
        checks.whole("window", self.window, 3)
        for name in ("near_floor", "variance"):
            checks.in_range(name, getattr(self, name), 0.0, 1.0, open_low=True, open_high=True)
        for name in ("gradient_norm", "still"):
            checks.in_range(name, getattr(self, name), 0.0, 1e12, open_low=True)

    def found(self, seen: dict[str, list[float]], floor: float | None, blind: float) -> dict[str, str]:
        """Return the signs that ``seen`` shows, by kind, each in words.

        Args:
            seen: Numbers of the steps logged so far by name, the last last: ``critic_loss``,
                ``generator_loss``, ``gradient_norm``, ``variance`` and ``change``, of samples since the step
                before.
            floor: Least loss of the critic; ``None`` if there is none.
            blind: Loss of the best critic that cannot tell fake from real.
        """
        last = {name: values[-self.window :] for name, values in seen.items()}
        whole = {name for name, values in last.items() if len(values) == self.window}
        signs = {}
        if floor is not None and "critic_loss" in whole:
            limit = floor + self.near_floor * (blind - floor)
            if max(last["critic_loss"]) < limit:
                signs["floor"] = (
                    f"the critic wins: its loss stays below {limit:.3g}, with a floor of {floor:.3g}, and "
                    "teaches the generator nothing: slow it down by its rate, a penalty, spectral norm or "
                    "instance noise"
                )
        if last.get("gradient_norm") and last["gradient_norm"][-1] > self.gradient_norm:
            signs["gradients"] = (
                f"gradients explode: their norm is {last['gradient_norm'][-1]:.3g}, above "
                f"{self.gradient_norm:g}: clip them, penalise the critic's slope or lower the rates"
            )
        stands = "change" in whole and sum(last["change"]) < self.still
        if stands and "generator_loss" in whole and falls_steadily(last["generator_loss"]):
            signs["garbage"] = (
                "the generator's loss falls steadily while its samples do not change: it fools the "
                "critic with what is no improvement: strengthen the critic"
            )
        if "variance" in whole and max(last["variance"]) < self.variance:
            signs["collapse"] = (
                f"modes collapse: samples vary by {last['variance'][-1]:.2g} of what real ones do: lower the "
                "generator's rate, penalise the critic's slope or enlarge the batch"
            )
        return signs
