"""The table of an optimizer's parameter groups: what is in force, and what it takes to remember."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tricks.lifecycle.optimizer_names import options_of
from lightning_tricks.updates.parameter_groups import Group

__all__ = ["GROUP_COLUMNS", "GroupFacts", "group_facts", "group_rows", "in_force", "state_bytes"]

GROUP_COLUMNS: dict[str, Literal["left", "right"]] = {
    "group": "left",
    "holds": "left",
    "tensors": "right",
    "parameters": "right",
    "rate": "left",
    "decay": "left",
    "state": "right",
}


class GroupFacts(NamedTuple):
    """What there is to say of a parameter group.

    Attributes:
        name: What it is called.
        holds: What is in it, in words.
        tensors: How many parameters.
        frozen: How many of these require no gradient.
        parameters: How many numbers they are.
        lr: Its rate, without what schedules make of it; ``None`` if the optimizer knows none.
        weight_decay: Likewise.
        state_bytes: What the optimizer will keep for it; ``None`` if that cannot be known before training.
    """

    name: str
    holds: str
    tensors: int
    frozen: int
    parameters: int
    lr: float | None
    weight_decay: float | None
    state_bytes: int | None


def group_facts(optimizer: Optimizer, groups: Iterable[Group]) -> Iterator[GroupFacts]:
    """Yield what there is to say of each of ``groups``, which are those of ``optimizer``."""
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        held = list(group.members.values())
        alike = Counter((p.shape, p.dtype) for p in held)
        sizes = [(count, state_bytes(optimizer, own, *kind)) for kind, count in alike.items()]
        known = [count * size for count, size in sizes if size is not None]
        yield GroupFacts(
            group.name,
            group.holds,
            tensors=len(held),
            frozen=sum(not parameter.requires_grad for parameter in held),
            parameters=sum(p.numel() for p in held),
            lr=float(own.get("initial_lr", own["lr"])) if "lr" in own else None,
            weight_decay=float(own["weight_decay"]) if "weight_decay" in own else None,
            state_bytes=sum(known) if len(known) == len(sizes) else None,
        )


def group_rows(optimizer: Optimizer, groups: Iterable[Group]) -> Iterator[tuple[str, ...]]:
    """Yield a row of :data:`GROUP_COLUMNS` for each group of ``optimizer``."""
    for told in group_facts(optimizer, groups):
        yield (
            told.name,
            told.holds,
            f"{told.tensors}" + (f" ({told.frozen} frozen)" if told.frozen else ""),
            f"{told.parameters:,}",
            *("-" if number is None else f"{number:.4g}" for number in (told.lr, told.weight_decay)),
            "?" if told.state_bytes is None else _readable(told.state_bytes),
        )


def state_bytes(
    optimizer: Optimizer, group: Mapping[str, Any], shape: torch.Size, dtype: torch.dtype
) -> int | None:
    """Return how many bytes ``optimizer`` will keep for a parameter, from a step on a stand-in of it.

    Args:
        optimizer: Left as it is.
        group: The one that the parameter is in.
        shape: Of the parameter; under shards that of the part that this process holds.
        dtype: Of the parameter.

    Returns:
        ``None`` if that cannot be known before training.
    """
    known = options_of(type(optimizer)) or optimizer.defaults
    options = {key: value for key, value in group.items() if key in known and key != "params"}
    for device in ("meta", "cpu"):  # the first costs nothing, but tells no optimizer that looks at values
        stand_in = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
        stand_in.grad = torch.zeros_like(stand_in)
        try:
            trial = type(optimizer)([stand_in], **options)
            getattr(trial, "train", lambda: None)()  # those that are free of schedules have two modes
            trial.step()
        except Exception:  # some want more than a gradient, and each says so in its own way
            continue
        return sum(v.nbytes for v in trial.state[stand_in].values() if isinstance(v, Tensor))
    return None


def in_force(optimizer: Optimizer) -> str:
    """Return the name of ``optimizer`` with the options that all its groups share, and that say something.

    Example:
        >>> in_force(torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9))
        'SGD(momentum=0.9, dampening=0, nesterov=False)'
    """
    shown = {
        name: value
        for name, value in optimizer.defaults.items()
        if name not in {"lr", "weight_decay", *_DETAILS}
        and all(group[name] == value for group in optimizer.param_groups)
    }
    return f"{type(optimizer).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


# How a step is computed, not what it is.
_DETAILS = (
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "maximize",
    "decoupled_weight_decay",
)


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB"
