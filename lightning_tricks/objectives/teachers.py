"""Who teaches a student: networks, with weights of a file if asked, and how much each of them counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_tricks.core import checks
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Schedule
from lightning_tricks.core.select import clean_name
from lightning_tricks.lifecycle.opening import Reading
from lightning_tricks.lifecycle.stored import Stored

__all__ = ["Teacher", "Teachers", "in_its_precision", "load_weights_", "shared_parameter"]


def load_weights_(network: nn.Module, path: str) -> None:
    """Give ``network`` the weights of a file, which may hold tensors and plain values alone.

    Args:
        network: Gets all of its parameters and buffers from the file, or keeps its own after an error.
        path: A checkpoint of Lightning, a state dict, a safetensors file or the folder of a distributed
            checkpoint. Where the network is an attribute of the module that wrote it, such as
            ``self.network``, that part is taken.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds more than it may, or does not fit; names what.
    """
    own = {clean_name(name): tensor for name, tensor in network.state_dict().items()}
    with ExitStack() as stack:
        opened = Reading().open(path, stack, label=path).tensors
        held = {clean_name(name): stored for name, stored in opened.items()}
        part = _part(own, held, path)
        theirs = {name.removeprefix(part): each for name, each in held.items() if name.startswith(part)}
        for what, names in (
            ("lacks", [name for name in own if name not in theirs]),
            ("holds besides", [name for name in theirs if name not in own]),
        ):
            if names:
                raise ValueError(
                    f"checkpoint must hold the weights of {type(network).__name__}, but {path} {what} "
                    f"{checks.listed(names)}"
                )
        for name, tensor in own.items():
            if theirs[name].shape != tensor.shape:
                raise ValueError(
                    f"checkpoint must fit the network, got {name!r} with shape {tuple(theirs[name].shape)} "
                    f"for {tuple(tensor.shape)} in {path}"
                )
        read = {name: theirs[name].read().view(theirs[name].shape) for name in own}
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(read[name])


def _part(own: Mapping[str, Tensor], held: Mapping[str, Stored], path: str) -> str:
    """Return what precedes the names of ``own`` in ``held``, "" if nothing does."""
    first = next(iter(own), "")
    if first in held:
        return ""
    named = [name.removesuffix(first) for name in held if name.endswith(f".{first}")]
    parts = [each for each in named if all(each + name in held for name in own)]
    fitting = [each for each in parts if all(held[each + name].shape == own[name].shape for name in own)]
    if len(fitting) > 1:
        raise ValueError(
            f"checkpoint must hold one network that fits, got {checks.listed(fitting)} in {path}"
        )
    return (fitting or parts or [""])[0]


def in_its_precision(network: nn.Module, inputs: Any) -> Any:
    """Return ``inputs`` with floating tensors in the type of the network's floating parameters.

    Example:
        >>> in_its_precision(nn.Linear(2, 2), [torch.zeros(1, dtype=torch.bfloat16)])
        [tensor([0.])]
    """
    kind = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)

    def cast(leaf: Any) -> Any:
        return leaf.to(kind) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return inputs if kind is None else tree_map(cast, inputs)


def shared_parameter(student: nn.Module, teacher: nn.Module) -> str | None:
    """Return the student's name of a parameter that both have; ``None`` if there is none.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> shared_parameter(nn.Sequential(layer), layer)
        '0.weight'
    """
    theirs = set(teacher.parameters())
    named = student.named_parameters()
    return next((clean_name(name) for name, parameter in named if parameter in theirs), None)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network to learn from.

    Args:
        network: Returns logits for the student's inputs. It keeps its own precision, and gets inputs in it.
        checkpoint: A file whose weights it gets (:func:`load_weights_`); ``None`` if it has them.
        weight: How much its predictions count beside those of other teachers, above 0.
        features: Hidden features that the student's shall equal: patterns of names of the student's layers,
            each with one of this network's. A pattern stands for the outermost layers that it matches, in
            order, and both must match equally many; the last output of a layer in a pass counts.

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If a number is out of range, or the checkpoint does not fit.
    """

    network: nn.Module
    _: KW_ONLY
    checkpoint: str | None = None
    weight: float = 1.0
    features: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the settings and load the checkpoint."""
        if not isinstance(self.network, nn.Module):
            raise TypeError(
                f"a teacher must be a torch.nn.Module, got {self.network!r:.80}: give the weights of a file "
                "by Teacher(network, checkpoint=...)"
            )
        if isinstance(self.network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            kind = type(self.network).__name__
            raise TypeError(
                f"a teacher must not be wrapped for several devices, got {kind}: give its .module"
            )
        checks.in_range("weight", self.weight, 0.0, open_low=True, open_high=True)
        if not isinstance(self.features, Mapping):
            raise TypeError(f"features must be a dict of patterns, got {self.features!r}")
        for pattern in [*self.features, *self.features.values()]:
            checks.text("a pattern of features", pattern)
        if self.checkpoint is not None:
            load_weights_(self.network, checks.text("checkpoint", self.checkpoint))


@dataclass(frozen=True, eq=False)
class Teachers:
    """Whom a student learns from, and how.

    Args:
        networks: A teacher or several: modules that return logits for the student's inputs, or
            :class:`Teacher` objects.
        temperature: Divides all logits before the softmax, above 0; a number, a schedule or its text.
        alpha: Weight of the teachers beside that of the labels, 1 - alpha, in [0, 1]; likewise.
        feature_weight: Weight of the mean squared differences of hidden features, at least 0; likewise.
        cached: Whether the teachers' logits are computed once, before training, and looked up then. The
            dataset must give each sample with its own index, and the same inputs each time: no random
            augmentation.

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If there is no teacher, or a number is out of range.

    Example:
        >>> teachers = Teachers([nn.Linear(4, 3), Teacher(nn.Linear(4, 3), weight=2.0)], alpha=0.9)
        >>> [teacher.weight for teacher in teachers.members]
        [1.0, 2.0]
    """

    networks: nn.Module | Teacher | Sequence[nn.Module | Teacher]
    _: KW_ONLY
    temperature: float | str | Schedule = 4.0
    alpha: float | str | Schedule = 0.5
    feature_weight: float | str | Schedule = 1.0
    cached: bool = False
    members: tuple[Teacher, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        given: Any = self.networks if isinstance(self.networks, list | tuple) else [self.networks]
        if not given:
            raise ValueError(f"teachers must hold at least one network, got {self.networks!r}")
        members = tuple(each if isinstance(each, Teacher) else Teacher(each) for each in given)
        object.__setattr__(self, "members", members)
        as_schedule("temperature", self.temperature, 0.0, open_low=True, open_high=True)
        as_schedule("alpha", self.alpha, 0.0, 1.0)
        as_schedule("feature_weight", self.feature_weight, 0.0, open_high=True)
        if checks.flag("cached", self.cached) and self.matches_features:
            raise ValueError("cached must be False where features are matched, which are not kept, got True")

    @property
    def weights(self) -> list[float]:
        """How much each counts."""
        return [teacher.weight for teacher in self.members]

    @property
    def matches_features(self) -> bool:
        """Whether any teacher has features to match."""
        return any(teacher.features for teacher in self.members)
