"""How initial weights are drawn: torch samples, with the deviation that each scheme gives for the fans.

    xavier        Var = 2 / (n_in + n_out)
    kaiming       Var = gain ** 2 / n_in, or / n_out
    lecun         Var = 1 / n_in
    orthogonal    W W^T = gain ** 2 I where W has no more rows than columns, else W^T W = gain ** 2 I
    normal, truncated_normal    Var as told; truncated at two deviations, 0.8796 of the deviation are left

Uniform weights lie in +-sqrt(3 Var). A convolution's weight is a matrix with one row per first index.

References: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
2010, https://proceedings.mlr.press/v9/glorot10a.html, equation 16; He et al., "Delving Deep into Rectifiers",
2015, https://arxiv.org/abs/1502.01852, equations 10 and 14; LeCun et al., "Efficient BackProp", 1998, section
4.6; Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
2014, https://arxiv.org/abs/1312.6120.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.network.fans import Fans
from lightning_tricks.network.gains import NONLINEARITIES, named_gain

__all__ = ["LARGEST", "SCHEMES", "Scheme", "SchemeName"]

SchemeName = Literal[
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "lecun_normal",
    "orthogonal",
    "normal",
    "truncated_normal",
]
SCHEMES: tuple[str, ...] = get_args(SchemeName)

LARGEST = 65504.0  # what half precision holds

# The standard deviation of a standard normal variable that is kept within +-2.
_KEPT = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A scheme with its settings, checked.

    Attributes:
        name: One of :data:`SCHEMES`.
        nonlinearity: The activation behind layers where none is seen; for kaiming and orthogonal.
        fan: Whether kaiming keeps the variance forward, ``"in"``, or backward, ``"out"``.
        std: Deviation of the normal schemes, before truncation.
    """

    name: str
    nonlinearity: str
    fan: str
    std: float

    def __post_init__(self) -> None:
        """Check the settings, those included that the scheme would not use.

        Raises:
            ValueError: If one is wrong; of ``"zeros"`` says why it is no scheme.
        """
        if isinstance(self.name, str) and self.name in ("zero", "zeros"):
            raise ValueError(
                f"scheme must break symmetry, got {self.name!r}: units that start equal get equal gradients "
                "and stay equal, and behind ReLU all are zero for ever; give a scheme with bias=0.0, or zero "
                "the last layer of each residual branch only"
            )
        checks.one_of("scheme", self.name, SCHEMES)
        checks.one_of("nonlinearity", self.nonlinearity, NONLINEARITIES)
        checks.one_of("fan", self.fan, ("in", "out"))
        checks.in_range("std", self.std, 0.0, LARGEST, open_low=True)
        for setting, value, default, used in (
            ("nonlinearity", self.nonlinearity, "relu", self.gained),
            ("fan", self.fan, "in", self.name.startswith("kaiming")),
            ("std", self.std, 0.02, self.normal),
        ):
            if not used and value != default:
                raise ValueError(f"{setting} must be left out with scheme {self.name!r}, got {value!r}")

    @property
    def normal(self) -> bool:
        """Whether the deviation is told, whatever the fans."""
        return self.name in ("normal", "truncated_normal")

    @property
    def gained(self) -> bool:
        """Whether the activation counts."""
        return self.name.startswith("kaiming") or self.name == "orthogonal"

    @property
    def gain(self) -> float:
        """The gain where no activation is seen."""
        return named_gain(self.nonlinearity) if self.gained else 1.0

    def deviation(self, shape: tuple[int, ...], fans: Fans, gain: float) -> float:
        """Return the standard deviation of the entries of a weight of ``shape``."""
        if self.normal:
            return self.std * (_KEPT if self.name == "truncated_normal" else 1.0)
        if self.name == "orthogonal":
            # Its rows, or its columns if they are fewer, have length ``gain``.
            return gain / math.sqrt(max(shape[0], math.prod(shape[1:])))
        if self.name.startswith("xavier"):
            return math.sqrt(2 / (fans.n_in + fans.n_out))
        return gain / math.sqrt(fans.n_out if self.fan == "out" else fans.n_in)

    def draw_(self, weight: Tensor, fans: Fans, gain: float, generator: torch.Generator) -> Tensor:
        """Fill ``weight``, of at least single precision and on the device of ``generator``, and return it."""
        if not weight.numel():
            return weight
        if self.name == "orthogonal":
            return nn.init.orthogonal_(weight, gain, generator=generator)
        if self.name == "truncated_normal":
            two = 2 * self.std
            return nn.init.trunc_normal_(weight, 0.0, self.std, -two, two, generator=generator)
        std = self.deviation(tuple(weight.shape), fans, gain)
        if self.name.endswith("uniform"):
            bound = math.sqrt(3) * std
            return nn.init.uniform_(weight, -bound, bound, generator=generator)
        return nn.init.normal_(weight, 0.0, std, generator=generator)
