"""Values of any kind that a setting may be given, by mistake or on purpose."""

from __future__ import annotations

import datetime
import decimal
import fractions
import math
import pathlib
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

import lightning_tricks as lt

__all__ = ["CORNERS", "anything", "is_plain", "shown"]

NUMBERS: list[Any] = [
    *(0, 1, -1, 2, 10**19, -(10**19), 10**400, True, False),
    *(0.0, -0.0, 0.5, 1.0, 2.0, -0.5, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf),
    *(np.float64(0.5), np.float64("nan"), np.float32(0.5), np.int64(1), np.bool_(True), np.array(0.5)),
    *(torch.tensor(0.5), torch.tensor(1), torch.tensor(True), torch.tensor([0.5, 0.5])),
    *(0.5j, decimal.Decimal("0.5"), fractions.Fraction(1, 2)),
]
TEXTS = [
    *("", " ", "*", "head", "body.*", "[", "[!]", "*.weight", "nothing.like.it", "val_loss", "min", "\0"),
    *("1", "0.5", "1e999", "9" * 5000, "nan", "inf", "x", "lambda: 1", "__import__('os')"),
    *("5%", "100%", "101%", "-5%", "0%", "12.3456789%", "1e999%", "0.5 steps", "3 steps", "1e999 steps"),
    *("1 epoch", "0.5 epochs", "0 epochs", "1e308 epochs", "1e999 epochs"),
    *("constant()", "cosine()", "exponential(to=0.5)", "warmup(1)", "warmup(1) >> cosine(to=0.5)"),
    *("cosine() >> cosine()", "linear(to=0.0, over=1) >> exponential(to=0.5)", "linear(to=1e999)"),
    *("constant(1e999, over=1) >> linear(to=1.0)", "exponential(to=1e308, start=1e-308)"),
    *("1e308 * constant(1e308)", "0 * cosine()", "cosine() * 2", "2 * 2", "-" * 5000 + "1", "(" * 5000),
    *("cosine(**x)", "cosine(*x)", "cosine(1)", "cosine(to='a')", "warmup(True)"),
    *(
        "step(every=1)",
        "multistep([1, '50%'])",
        "cyclic(2, to=0.5)",
        "cosine_restarts(1, mult=0)",
        "one_cycle()",
    ),
    *(
        "inverse_sqrt()",
        "warmup(1) >> inverse_sqrt()",
        "stable_decay('50%')",
        "multistep([[1]])",
        "step(every=[])",
    ),
    *("float32", "float64", "bfloat16", "average", "skip"),
    *("cpu", "meta", "cuda", "cuda:9", "mps", "nonsense"),
]
OTHERS: list[Any] = [
    *(None, (), [], {}, set(), frozenset({0.5}), {0.25, 0.75}, {"head": 1}, {"a": 0.5, "b": 0.5}),
    *(b"", b"head", bytearray(b"x"), np.str_("head"), pathlib.Path("head"), datetime.timedelta(1)),
    *(range(2), iter([1]), object(), NotImplemented, ..., lambda name, parameter: True),
    *(["head", "body"], ["head", ["body"]], ("head", ("body",)), [["head"], ["body"]], [[["head"]]]),
    *([1], (1, 2), [0.5, 0.5], (0.25, 0.75), [math.nan], np.array([0.5, 0.5]), (np.float64(0.5),) * 2),
    *(["*", "*"], ["1 epoch"], [()], [None], [True]),
    *(int, type, nn.Linear, nn.Linear(2, 2), torch.float32, torch.bfloat16, torch.device("cpu")),
    *(lt.cosine(), lt.constant(0.5), 2 * lt.warmup(1) >> lt.linear(to=0.5), lt.exponential(to=0.5)),
    *(lt.Average(), lt.Average((0.5, 0.5)), lt.LastEpochs(1), lt.Plateau("val_loss"), lt.GradientClip()),
]
CORNERS = [*NUMBERS, *TEXTS, *OTHERS]


def anything() -> st.SearchStrategy[Any]:
    """Return a strategy for values of all kinds, nested in one another."""
    numbers = st.one_of(st.integers(), st.floats(), st.floats(0.0, 1.0), st.integers(0, 5))
    amounts = st.one_of(st.integers(0, 300), st.floats(0, 300, allow_nan=False))
    durations = st.builds(
        lambda amount, unit: f"{amount}{unit}", amounts, st.sampled_from(["%", " epochs", " steps", "steps"])
    )
    leaves = st.one_of(st.sampled_from(CORNERS), numbers, st.text(max_size=8), durations, schedules())
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple)),
        max_leaves=4,
    )


def schedules() -> st.SearchStrategy[str]:
    """Return a strategy for texts of schedules, most of which can be read."""
    number = st.one_of(st.floats(-2.0, 2.0), st.sampled_from([0.0, 1.0, 1e308, 5e-324]))
    length = st.one_of(st.integers(0, 5), st.sampled_from(["'50%'", "'1 epoch'"]))
    shape = st.sampled_from(["linear", "cosine", "exponential"])
    last = st.one_of(
        st.builds("{}(to={})".format, shape, number),
        st.builds("{}(to={}, start={})".format, shape, number, number),
        st.builds("constant({})".format, number),
        st.builds("cosine_restarts({}, to={})".format, length, number),
        st.builds("cyclic({}, to={})".format, length, number),
        st.builds("step(every={}, gamma={})".format, length, number),
        st.builds("multistep([{}, {}])".format, length, length),
        st.builds("stable_decay({}, to={})".format, length, number),
    )
    first = st.one_of(
        st.builds("warmup({}, shape={!r})".format, length, st.sampled_from(["linear", "exponential"])),
        st.builds("constant({}, over={})".format, number, length),
        st.builds("{}(to={}, over={})".format, shape, number, length),
    )
    joined = st.one_of(last, st.builds("{} >> {}".format, first, last))
    return st.one_of(joined, st.builds("{} * ({})".format, number, joined))


def is_plain(value: Any) -> bool:
    """Return whether ``value`` can be written, because it holds no module type and no predicate."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return not callable(value)


def shown(value: Any, message: str) -> bool:
    """Return whether ``message`` shows ``value``, or an entry of it, or as much of it as fits."""
    if repr(value)[:20] in message or "every value of" in message:  # that one of a schedule
        return True
    entries = value.values() if isinstance(value, dict) else value
    return isinstance(value, list | tuple | dict) and any(shown(entry, message) for entry in entries)
