"""Stages of a network: disjoint sets of parameters that are opened one after the other.

    rate of stage k = base rate * factor ** k,    k = 0 for the stage that is open from the start

Stages are listed from the first opened (the head) to the last. All parameters stay in their optimizer:
every optimizer of torch leaves a parameter alone, its state and its decay included, while its gradient
is ``None``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.checks import listed
from lightning_tricks.core.groups import split_groups_
from lightning_tricks.core.select import Patterns, as_patterns

__all__ = [
    "as_stages",
    "check_factor",
    "check_optimizers",
    "check_same",
    "open_stages_",
    "split_by_stage_",
]


def as_stages(stages: object) -> int | list[Patterns]:
    """Return how many stages there are, or the patterns of each.

    Raises:
        TypeError: If it is neither, or a stage holds what is no pattern.
        ValueError: If the number is below 1, or a stage has no pattern.
    """
    if isinstance(stages, int):
        return checks.whole("stages", stages, 1)
    if not isinstance(stages, list | tuple) or not stages:
        raise TypeError(
            f"stages must be a list with the patterns of each stage, or how many there are, got {stages!r}"
        )
    for index, patterns in enumerate(stages):
        as_patterns(f"stages[{index}]", patterns)
    # YAML has no tuples; settings that mean the same are to be written the same.
    return [tuple(each) if isinstance(each, list) else each for each in stages]


def check_factor(factor: float, stages: int) -> None:
    """Accept a ratio of the rates of two successive stages with which each of ``stages`` has a rate.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not above 0 and finite, or so is not the rate of the last stage.
    """
    checks.in_range("lr_factor", factor, 0.0, open_low=True, open_high=True)
    if abs(math.log(factor) * (stages - 1)) > math.log(sys.float_info.max):
        raise ValueError(f"lr_factor must leave a rate to each of {stages} stages, got {factor!r}")


def check_optimizers(
    optimizers: Sequence[torch.optim.Optimizer],
    stages: Sequence[Mapping[str, nn.Parameter]],
    opened: int,
    *,
    scaled: bool,
) -> None:
    """Accept optimizers that can step these stages.

    Args:
        optimizers: All of the run.
        stages: The parameters of each stage.
        opened: How many of them are open at the start.
        scaled: Whether a gradient scaler steps the optimizers; it fails on one without any gradient.

    Raises:
        ValueError: If a parameter is in no optimizer, or a scaled optimizer holds no open one.
    """
    held = [{p for group in each.param_groups for p in group["params"]} for each in optimizers]
    stepped = set().union(*held)
    if missing := [name for stage in stages for name, p in stage.items() if p not in stepped]:
        raise ValueError(
            f"each parameter of a stage must be in an optimizer, got none for {listed(missing)}: "
            "let configure_optimizers give an optimizer all of them, frozen or not"
        )
    open_ones = {p for stage in stages[:opened] for p in stage.values()}
    if idle := [index for index, each in enumerate(held) if scaled and each.isdisjoint(open_ones)]:
        raise ValueError(
            f"with a gradient scaler each optimizer must hold a parameter of stages[0], got none for "
            f"optimizer {idle[0]}: open a part of it first, or train in bf16-mixed"
        )


def check_same(
    saved: Mapping[str, Any], stages: Sequence[Mapping[str, nn.Parameter]], factor: float, *, split: bool
) -> None:
    """Accept what a checkpoint holds of the stages of its run, if this run has the same.

    Args:
        saved: The names in each stage as ``"stages"``, ``"lr_factor"`` and ``"split"``.
        stages: The stages of this run.
        factor: Ratio of the rates of two successive stages in this run.
        split: Whether parameter groups are split by stage in this run.

    Raises:
        ValueError: If they differ; gives the first stage that does.
    """
    pairs: Iterable[tuple[list[str], list[str]]]
    pairs = zip_longest(saved["stages"], map(list, stages), fillvalue=[])
    for index, (then, now) in enumerate(pairs):
        if then != now:
            was, got = listed(then) or "nothing", listed(now) or "nothing"
            raise ValueError(
                f"stages must be those of the checkpoint, in which stages[{index}] held {was}; got {got}"
            )
    if saved["lr_factor"] != factor:
        raise ValueError(
            "lr_factor must be that of the checkpoint, with which parameter groups and rates come back, "
            f"{saved['lr_factor']!r}; got {factor!r}"
        )
    if saved["split"] != split:
        raise ValueError(
            f"warmup must {'' if saved['split'] else 'not '}be above 0 where lr_factor is 1, as in the "
            "checkpoint, with which parameter groups come back"
        )


def open_stages_(stages: Iterable[Mapping[str, nn.Parameter]], opened: int) -> dict[str, nn.Parameter]:
    """Let the first ``opened`` stages learn and no other; return the parameters that did not before.

    A gradient that a closed stage still holds is dropped, or momentum and decay would go on.
    """
    fresh: dict[str, nn.Parameter] = {}
    for index, stage in enumerate(stages):
        for name, parameter in stage.items():
            if index >= opened:
                parameter.grad = None
            elif not parameter.requires_grad:
                fresh[name] = parameter
            parameter.requires_grad_(index < opened)
    return fresh


def split_by_stage_(
    optimizer: torch.optim.Optimizer,
    depths: Mapping[nn.Parameter, int],
    factor: float,
) -> None:
    """Split each parameter group by stage and set the rate of each part.

    Every other option of a group goes to all its parts. The rate also becomes the part's ``initial_lr``,
    which schedules multiply.

    Args:
        optimizer: One whose options may differ between groups.
        depths: The stage of each parameter, from 0. Those without one keep their rate, in a part of
            their own at the end.
        factor: Ratio of the rates of two successive stages, above 0.

    Raises:
        ValueError: If the optimizer takes one group only, or a group has no rate.
    """
    for group in optimizer.param_groups:
        if not isinstance(group.get("lr"), int | float | Tensor):
            raise ValueError(
                f"lr_factor must be 1, and warmup 0, for groups without a rate, got {factor!r} for "
                f"lr={group.get('lr')!r}"
            )
    rest = max(depths.values(), default=-1) + 1
    places = split_groups_(
        optimizer,
        lambda parameter: depths.get(cast(nn.Parameter, parameter), rest),
        called=lambda depth: "frozen" if depth == rest else f"stage {depth + 1}",
        rule="lr_factor must be 1, and warmup 0,",
        value=factor,
    )
    for group, depth in zip(optimizer.param_groups, places, strict=True):
        if 0 <= depth < rest:
            group["lr"] = group["lr"] * factor**depth
        group["initial_lr"] = float(group["lr"])
