"""Weights of several losses by their values, or by chance.

    MagnitudeBalance      w_i = 1 / m_i,    m_i a bias-corrected running mean of L_i
    DynamicWeightAverage  w_i = T softmax_i(r / temperature),    r_i = L_i(e - 1) / L_i(e - 2)
    RandomWeights         w_i = T softmax_i(z),    z_i ~ Normal(0, 1)

of ``T`` losses; ``L_i(e)`` is the mean over epoch ``e``, and in the first two epochs ``w_i = 1``. Random
weights are multiplied by ``T``, which the paper does not do: else the rate would mean less than with equal
weights.

References: Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", 2019,
https://arxiv.org/abs/1803.10704, equation 7; Lin et al., "Reasonable Effectiveness of Random Weighting: A
Litmus Test for Multi-Task Learning", 2022, https://arxiv.org/abs/2111.10603.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.seeds import seed_of
from lightning_tricks.objectives.loss_balance import LossBalance, Moment, State, at_least_floor

__all__ = [
    "DynamicWeightAverage",
    "MagnitudeBalance",
    "RandomWeights",
    "dynamic_weights",
    "random_weights",
    "running_mean",
]


def running_mean(mean: Tensor, value: Tensor, *, decay: float, count: int) -> Tensor:
    """Return the bias-corrected mean of ``count`` values, of which ``value`` is the last.

    Args:
        mean: That of the others; anything finite if there are none.
        value: Of the same shape.
        decay: What one step leaves of the weights of all before it, in [0, 1).
        count: At least 1.

    Example:
        >>> running_mean(torch.tensor(4.0), torch.tensor(1.0), decay=0.5, count=2)  # (0.5 * 4 + 1) / 1.5
        tensor(2.)
    """
    return mean + (value - mean) * ((1 - decay) / (1 - decay**count))


def dynamic_weights(last: Tensor, before: Tensor, *, temperature: float) -> Tensor:
    """Return weights that favour losses which fall slowly; their mean is 1.

    Args:
        last: Mean losses of the last epoch, shape (losses,).
        before: Those of the epoch before it; a loss that was 0 counts as if it had not changed.
        temperature: Above 0; the greater, the more alike the weights.

    Example:
        >>> dynamic_weights(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0]), temperature=2.0)
        tensor([0.8756, 1.1244])
    """
    ratios = torch.where(before > 0, last / before, 1.0)
    return len(last) * torch.softmax((ratios - ratios.max()) / temperature, 0)


def random_weights(count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` random weights, whose mean is 1, in double precision.

    Example:
        >>> random_weights(3, torch.Generator().manual_seed(0)).mean()
        tensor(1., dtype=torch.float64)
    """
    # In the default type, runs with another one would draw other weights.
    return count * torch.softmax(torch.randn(count, generator=generator, dtype=torch.double), 0)


@dataclass(frozen=True)
class MagnitudeBalance(LossBalance):
    """Divide each loss by a running mean of itself, so that each is about 1.

    The mean is that of the steps before; at the first step, the first batch takes its place.

    Promise: units do not matter. Shares of the gradient are those that the losses would have if each were
    divided by its usual size; to multiply a loss by 10,000 changes nothing. Above 1e-12, that is: a loss that
    falls below it no longer gains weight.

    Args:
        decay: What one step leaves of the weights of those before it, in [0, 1).

    Example:
        >>> MagnitudeBalance(decay=0.9)
        MagnitudeBalance(decay=0.9)
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        """Check the setting."""
        object.__setattr__(self, "decay", checks.in_range("decay", self.decay, 0.0, 1.0, open_high=True))

    def begin(self, losses: Tensor, norms: Tensor | None) -> State:
        return {"mean": losses}

    def advance(
        self, state: State, losses: Tensor, norms: Tensor | None, *, count: int, ends_epoch: bool
    ) -> State:
        return {"mean": running_mean(state["mean"], losses, decay=self.decay, count=count)}

    def weigh(self, moment: Moment) -> Tensor:
        return 1 / at_least_floor(moment.state["mean"])


@dataclass(frozen=True)
class DynamicWeightAverage(LossBalance):
    """Favour the losses that fall slowly, by the ratio of their means in the last two epochs (DWA).

    Promise: none about scales; a loss's share of the gradient follows its own. Weights are 1 in the first two
    epochs and where all losses fall alike, and those of losses that fall differ by no more than a factor of
    exp(1 / temperature), 1.65 by default. So little gains nothing on the digits
    (``python -m benchmarks.balancing``); it helps where one loss is the last to come down for no other reason
    than that it falls slowly, as below.

    Args:
        temperature: In [1e-6, 1e6]; the greater, the more alike the weights. The paper takes 2.

    Example:
        Two losses of one weight each, one a hundred times as steep as the other, by gradient descent. How
        many epochs of twenty steps until the flat one has fallen to a hundredth?

        >>> def epochs(temperature):
        ...     x, steepness = torch.ones(2, dtype=torch.double), torch.tensor([0.1, 0.001])
        ...     means, weights = [], torch.ones(2)
        ...     while not means or means[-1][1] > 0.01 * means[0][1]:
        ...         if len(means) > 1 and temperature:
        ...             weights = dynamic_weights(means[-1], means[-2], temperature=temperature)
        ...         losses = []
        ...         for _ in range(20):
        ...             losses.append(steepness * x**2 / 2)
        ...             x = x - weights * steepness * x
        ...         means.append(torch.stack(losses).mean(0))
        ...     return len(means)
        >>> epochs(None), epochs(2.0), epochs(0.5)  # equal weights, the default, and more unlike ones
        (117, 96, 73)

        In a module, ``loss_balance = DynamicWeightAverage()``.
    """

    temperature: float = 2.0

    def __post_init__(self) -> None:
        """Check the setting."""
        object.__setattr__(self, "temperature", checks.in_range("temperature", self.temperature, 1e-6, 1e6))

    def begin(self, losses: Tensor, norms: Tensor | None) -> State:
        none = torch.zeros_like(losses)
        return {"sum": none, "steps": none[0], "last": none, "before": none}

    def advance(
        self, state: State, losses: Tensor, norms: Tensor | None, *, count: int, ends_epoch: bool
    ) -> State:
        total, steps = state["sum"] + losses, state["steps"] + 1
        if not ends_epoch:
            return {**state, "sum": total, "steps": steps}
        none = torch.zeros_like(total)
        return {"sum": none, "steps": none[0], "last": total / steps, "before": state["last"]}

    def weigh(self, moment: Moment) -> Tensor:
        state = moment.state
        return dynamic_weights(state["last"], state["before"], temperature=self.temperature)


@dataclass(frozen=True)
class RandomWeights(LossBalance):
    """Draw the weights anew for each step, the same in all processes; what any other must beat (RLW).

    Promise: none about scales. On average over steps each weight is 1. On the digits it loses half a point
    against equal weights (``python -m benchmarks.balancing``). It helps where losses that pull against each
    other hold one another in a place that is good for neither, as below.

    Args:
        seed: At least 0. A draw follows from it and from the number of the step.

    Example:
        Two losses of one weight ``x`` whose sum, ``(x^2 - 1)^2 - x``, has a shallow valley at -0.84 and a
        deep one at 1.11, by gradient descent from -1 with a rate that falls to 0:

        >>> def end(seed):
        ...     draws, x = torch.Generator().manual_seed(seed or 0), -1.0
        ...     for step in range(1000):
        ...         common, apart = 2 * x * (x * x - 1) - 0.5, 3.0  # of the slopes of the two
        ...         first, second = (1.0, 1.0) if seed is None else random_weights(2, draws).tolist()
        ...         x -= 0.05 * (1 - step / 1000) * (first * (common + apart) + second * (common - apart))
        ...     return x
        >>> round(end(None), 2)  # equal weights
        -0.84
        >>> sum(end(seed) > 1 for seed in range(10))
        10

        In a module, ``loss_balance = RandomWeights(seed=3)``.
    """

    looks: ClassVar[bool] = False
    nonnegative: ClassVar[bool] = False

    seed: int = 0

    def __post_init__(self) -> None:
        """Check the setting."""
        checks.whole("seed", self.seed)

    def weigh(self, moment: Moment) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "random weights", moment.step))
        return random_weights(len(moment.names), generator)


# Else a module that saves them as hyperparameters could not be resumed: they hold plain values only.
torch.serialization.add_safe_globals([DynamicWeightAverage, MagnitudeBalance, RandomWeights])
