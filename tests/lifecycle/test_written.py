"""Settings are written alike by every process, whatever they hold."""

from __future__ import annotations

import functools
import math
import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_tricks import GradientNoise, WeightDecay
from lightning_tricks.lifecycle.written import written
from tests.toys import Loader, StopAfter, StopError, Toy, trainer


def matrices(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim > 1


def predicate() -> Callable[[str, torch.Tensor], bool]:
    return lambda name, parameter: parameter.ndim > 1


class Chosen:
    """A predicate that is an object."""

    def __call__(self, name: str, parameter: torch.Tensor) -> bool:
        return parameter.ndim > 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (nn.Linear, "torch.nn.modules.linear.Linear"),
        (matrices, f"{__name__}.matrices"),
        (predicate(), f"{__name__}.predicate.<locals>.<lambda>"),
        (Chosen().__call__, f"{__name__}.Chosen.__call__"),
        (Chosen(), f"<{__name__}.Chosen object>"),
        (functools.partial(matrices, "a"), "functools.partial(<function matrices>, 'a')"),
        (("body", nn.Linear), "('body', torch.nn.modules.linear.Linear)"),
        ((matrices,), f"({__name__}.matrices,)"),
        (["a", [nn.Linear]], "['a', [torch.nn.modules.linear.Linear]]"),
        ((), "()"),
        ("at 0x12 and at 0x3f", "'at 0x12 and at 0x3f'"),
        ((1.5, math.inf), "(1.5, float('inf'))"),
        (operator.is_, "_operator.is_"),
        (torch.float32, "torch.float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_against_texts_by_hand(value: object, text: str) -> None:
    assert written(value) == text


def test_a_type_is_written_so_that_it_can_be_read() -> None:
    text = repr(GradientNoise(variance=0.1, params=("head", nn.Linear)))
    again = eval(text, {"GradientNoise": GradientNoise, "torch": torch})
    assert again.params == ("head", nn.Linear)


def build() -> WeightDecay:
    return WeightDecay(params=(predicate(), nn.Linear, Chosen()))


@pytest.mark.slow
def test_another_process_writes_the_same() -> None:
    command = [sys.executable, "-c", f"from {__name__} import build; print(build())"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert ended.stdout == f"{build()}\n"


@pytest.mark.parametrize("make", [predicate, Chosen, lambda: (predicate(), "head")])
def test_resumed_with_the_same_callable_nothing_is_said(make: Callable[[], Any], tmp_path: Path) -> None:
    saved = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(WeightDecay(params=make()), StopAfter(3, saved)).fit(Toy(weight_decay=0.0), Loader())
    others = [make() for _ in range(3)]  # at other addresses
    # A warning would be an error.
    trainer(WeightDecay(params=others[-1])).fit(Toy(weight_decay=0.0), Loader(), ckpt_path=saved)
