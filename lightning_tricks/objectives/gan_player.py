"""The optimizer of a player: which, at which rate, and which parameters it steps.

Reference: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
2017, https://arxiv.org/abs/1706.08500, for a rate of each player's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

from lightning_tricks.core import checks
from lightning_tricks.lifecycle.optimizer_names import check_options, optimizer_class

__all__ = ["Player", "optimizer_of", "parameters_of"]


@dataclass(frozen=True)
class Player:
    """The optimizer that all generators or all critics share.

    Args:
        optimizer: The name of an optimizer in ``torch.optim``, the import path of another, or a class.
        lr: Its rate, above 0.
        options: Its further options, by name.

    Example:
        >>> Player("SGD", lr=0.1).build([nn.Parameter()]).defaults["lr"]
        0.1
    """

    optimizer: str | type[Optimizer] = "Adam"
    _: KW_ONLY
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TypeError: If a setting is of a wrong type.
            ValueError: If the rate is out of its range, or the optimizer or one of its options is unknown.
        """
        kind = optimizer_class(self.optimizer)
        if issubclass(kind, LBFGS):
            raise ValueError("optimizer must step without a closure, got LBFGS")
        checks.in_range("lr", self.lr, 0.0, 1e6, open_low=True)
        if not isinstance(self.options, Mapping):
            raise TypeError(f"options must be options by name, got {self.options!r}")
        check_options("options", kind, self.options)

    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Return the optimizer of ``parameters``."""
        kind: Any = optimizer_class(self.optimizer)
        built: Optimizer = kind(list(parameters), lr=self.lr, **self.options)
        return built


def parameters_of(networks: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of ``networks``, each once."""
    return list(dict.fromkeys(p for network in networks for p in network.parameters()))


def optimizer_of(who: str, parameters: Sequence[nn.Parameter], optimizers: Sequence[Optimizer]) -> int:
    """Return the index of the one of ``optimizers`` that steps ``parameters``, all of them and no others.

    Args:
        who: Whose they are, for errors.
        parameters: Those of a player.
        optimizers: Those of the run.

    Raises:
        ValueError: If there is none.
    """
    for index, optimizer in enumerate(optimizers):
        if {p for group in optimizer.param_groups for p in group["params"]} == set(parameters):
            return index
    raise ValueError(
        f"an optimizer must step all parameters of {who} and no others, got none of {len(optimizers)}"
    )
