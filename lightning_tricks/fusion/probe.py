"""Data for methods that look at more than weights: a module to put models into, batches and a loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.functional import Loss, loss_with
from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import FusionMethod

__all__ = ["Probe", "Probing", "check_probe", "informed", "needs_probe"]


def _alone(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Probe:
    """What shows methods of fusion how models do on data (:func:`~lightning_tricks.fuse`).

    Args:
        module: What the models are models of, with the names of their tensors; unchanged afterwards. On its
            device it is computed.
        batches: As ``loss`` takes them, on the device of ``module``; gone through several times, so a list or
            a loader, whose order should be the same each time.
        loss: Gets ``module``, in evaluation mode, and a batch; returns the mean loss of its samples, of shape
            ().
        add_up: Returns the sum of a tensor over all processes that share the work, each with batches of its
            own.

    Example:
        >>> import torch
        >>> from lightning_tricks import LearnedSoup, fuse
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> def loss(module, x): return (module(x) - 3 * x).square().mean()
        >>> probe = Probe(nn.Linear(1, 1, bias=False), [x], loss)
        >>> models = [{"weight": torch.tensor([[0.0]])}, {"weight": torch.tensor([[4.0]])}]
        >>> fuse(models, LearnedSoup(), probe=probe)["weight"].round(decimals=2)
        tensor([[3.]])
    """

    module: nn.Module
    batches: Iterable[Any]
    loss: Loss
    add_up: Callable[[Tensor], Tensor] = _alone

    def __post_init__(self) -> None:
        """Check the settings."""
        if not isinstance(self.module, nn.Module):
            raise TypeError(f"module must be a module, got {self.module!r:.80}")
        if not isinstance(self.batches, Iterable) or isinstance(self.batches, Iterator):
            raise TypeError(
                "batches must be a list or a loader, which can be gone through several times, got "
                f"{self.batches!r:.80}"
            )
        if not callable(self.loss):
            raise TypeError(f"loss must be a function of a module and a batch, got {self.loss!r:.80}")

    def names(self, model: Model) -> dict[str, str]:
        """Return, for each name in ``model``, the name of that tensor in the module, the first if it is tied.

        Raises:
            ValueError: If the module has no such tensor, or ``model`` lacks one that the module learns.
        """
        own = self._own()
        kind = type(self.module).__name__
        if strange := [name for name in model if clean_name(name) not in own]:
            raise ValueError(
                f"module of probe must have the tensors of the models, but {kind} has no "
                f"{checks.listed(strange)}"
            )
        found = {name: own[clean_name(name)] for name in model}
        learning = (name for name, value in self.module.named_parameters() if value.requires_grad)
        if lacking := [name for name in learning if name not in found.values()]:
            raise ValueError(
                f"the models must have the parameters of the module of probe, {kind}, but "
                f"{checks.listed(lacking)} are in none"
            )
        return found

    def _own(self) -> dict[str, str]:
        """Return the names in the module by all clean ones; of tied tensors the first."""
        module = self.module
        first = {id(value): name for name, value in self._tensors()}
        every = chain(
            module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
        )
        return {clean_name(name): first[id(value)] for name, value in every}

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.module.named_parameters()
        yield from self.module.named_buffers()

    def placed(self, model: Model) -> dict[str, Tensor]:
        """Return the tensors of ``model`` by their names in the module, on its device and in its types.

        Those that ``model`` does not have are the module's own. Buffers share no memory with either.

        Raises:
            ValueError: As :meth:`names`, or if a tensor has another shape in the module.
        """
        own = dict(self._tensors())
        buffers = {name for name, _ in self.module.named_buffers()}
        for name, place in self.names(model).items():
            if model[name].shape != own[place].shape:
                raise ValueError(
                    f"{name} must have one shape in the models and in the module of probe, got "
                    f"{tuple(model[name].shape)} and {tuple(own[place].shape)}"
                )
            own[place] = model[name].to(own[place].device, own[place].dtype)
        return {name: value.detach().clone() if name in buffers else value for name, value in own.items()}

    def loss_of(self, tensors: Model, batch: Any) -> Tensor:
        """Return the loss of ``batch`` with ``tensors``, by their names in the module."""
        return loss_with(self.module, tensors, self.loss, batch)


class Probing(FusionMethod):
    """Base of the policies that may look at data before they fuse."""

    held_out = False  # no annotation, which parsers would look up where a subclass stands
    """Whether that must be data on which the models were not trained."""

    @property
    @abstractmethod
    def needs_probe(self) -> bool:
        """Whether it cannot fuse without."""

    @property
    def batches(self) -> int | None:
        """How many batches of a run's data it wants to look at; ``None`` for all of an epoch."""
        return None

    @abstractmethod
    def probed(self, models: Sequence[Model], probe: Probe) -> FusionMethod:
        """Return the method that knows what the data say of ``models``, and fuses these.

        Raises:
            ValueError: If the models do not fit one another or the probe.
        """


def needs_probe(method: FusionMethod) -> bool:
    """Return whether ``method`` cannot fuse without a probe."""
    return isinstance(method, Probing) and method.needs_probe


def check_probe(method: FusionMethod, probe: Probe | None) -> None:
    """Accept a probe where ``method`` needs one.

    Raises:
        TypeError: If it is none.
        ValueError: If it lacks.
    """
    if probe is not None and not isinstance(probe, Probe):
        raise TypeError(f"probe must be a Probe, got {probe!r:.80}")
    if probe is None and needs_probe(method):
        raise ValueError(f"probe must be given for {method!r}, which looks at data, got None")


def informed(method: FusionMethod, models: Sequence[Model], probe: Probe | None) -> FusionMethod:
    """Return ``method``, knowing what ``probe`` shows of ``models`` if it needs one.

    Raises:
        TypeError: As :func:`check_probe`.
        ValueError: Likewise, and as :meth:`Probing.probed`.
    """
    check_probe(method, probe)
    if probe is None or not (isinstance(method, Probing) and method.needs_probe):
        return method
    method.check_count(len(models))
    return method.probed(models, probe)
