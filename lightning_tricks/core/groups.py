"""Parameter groups of optimizers: split, so that parts of one can have settings of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["group_sizes", "saved_group_sizes", "split_groups_"]


def group_sizes(groups: Iterable[Iterable[Mapping[str, Any]]]) -> list[list[int]]:
    """Return how many tensors each parameter group of each optimizer holds."""
    return [[len(group["params"]) for group in each] for each in groups]


def saved_group_sizes(checkpoint: Mapping[str, Any]) -> list[list[int]]:
    """Return the same of the optimizers that ``checkpoint`` holds.

    Raises:
        ValueError: If what it holds are no optimizers.
    """
    try:
        return group_sizes(each["param_groups"] for each in checkpoint.get("optimizer_states", []))
    except (KeyError, TypeError) as error:
        raise ValueError(
            "optimizer_states of a checkpoint must hold the groups of each optimizer, but do not: it is "
            "damaged; resume from another checkpoint"
        ) from error


def split_groups_(
    optimizer: torch.optim.Optimizer,
    place: Callable[[Tensor], int],
    *,
    called: Callable[[int], str],
    rule: str,
    value: object,
) -> list[int]:
    """Split each parameter group by the places of its parameters, in the order of these.

    Every option of a group goes to all its parts; a name gets an ending that tells them apart.

    Args:
        optimizer: One whose options may differ between groups.
        place: Gives the place of a parameter.
        called: Gives the ending for a place.
        rule: What must hold where groups cannot be split, for the error.
        value: What the user gave instead.

    Returns:
        The place of each group that there is now; -1 for one that is empty.

    Raises:
        ValueError: If the optimizer takes one group only.
    """
    parts = [part for group in optimizer.param_groups for part in _parts(group, place, called)]
    if isinstance(optimizer, torch.optim.LBFGS) and len(parts) > 1:
        raise ValueError(f"{rule} with LBFGS, which takes a single group, got {value!r}")
    # In place, because others hold the list.
    optimizer.param_groups[:] = [part for _, part in parts]
    return [at for at, _ in parts]


def _parts(
    group: dict[str, Any], place: Callable[[Tensor], int], called: Callable[[int], str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    members: dict[int, list[int]] = {}
    for index, parameter in enumerate(group["params"]):
        members.setdefault(place(parameter), []).append(index)
    if len(members) < 2:
        yield next(iter(members), -1), group
        return
    for at in sorted(members):
        part = dict(group)
        for key in {"params", "param_names"} & part.keys():
            part[key] = [group[key][index] for index in members[at]]
        if "name" in part:  # names of groups must differ
            part["name"] += f"/{called(at)}"
        yield at, part
