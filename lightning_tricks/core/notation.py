"""Schedules written as text, so that YAML and a command line can hold them.

The text is read as an expression of the few functions below, numbers, ``*`` and ``>>``; nothing in it
is ever executed as code.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

from lightning_tricks.core import checks, cycles, decays, phases, shapes
from lightning_tricks.core.schedule import Schedule

__all__ = ["FUNCTIONS", "as_schedule", "parse"]

FUNCTIONS: dict[str, Callable[..., Schedule]] = {
    "constant": shapes.constant,
    "cosine": shapes.cosine,
    "cosine_restarts": cycles.cosine_restarts,
    "cyclic": cycles.cyclic,
    "exponential": shapes.exponential,
    "exponential_decay": decays.exponential_decay,
    "inverse_sqrt": decays.inverse_sqrt,
    "inverse_time": decays.inverse_time,
    "linear": shapes.linear,
    "multistep": decays.multistep,
    "one_cycle": phases.one_cycle,
    "polynomial": shapes.polynomial,
    "stable_decay": phases.stable_decay,
    "step": decays.step,
    "warmup": shapes.warmup,
}
"""What may be called in the text of a schedule."""


def as_schedule(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> Schedule:
    """Return ``value``, a number, a schedule or its text, as a schedule within a range.

    Args:
        name: What the user calls the value.
        value: The value.
        low: Least value that the schedule may take.
        high: Greatest value that it may take.
        open_low: Whether ``low`` itself is outside.
        open_high: Whether ``high`` itself is outside.

    Raises:
        TypeError: If ``value`` is none of the three.
        ValueError: If the text cannot be read, or a value of the schedule lies outside the range or is not
            finite; a number may be infinite where the range is.
    """
    if isinstance(value, str):
        value = parse(value, name=name)
    if isinstance(value, Schedule):
        for end in value.bounds():
            checks.in_range(f"every value of {name}", end, low, high, open_low=open_low, open_high=open_high)
            if math.isinf(end):
                raise ValueError(f"every value of {name} must be finite, got {end!r}")
        return value
    real = checks.in_range(name, value, low, high, open_low=open_low, open_high=open_high)
    return shapes.Constant(level=real)


def parse(text: str, *, name: str = "schedule") -> Schedule:
    """Return the schedule that ``text`` writes.

    Args:
        text: Such as ``"warmup('5%') >> cosine(to=0.1)"`` or ``"0.5"``.
        name: What the user calls the setting, for errors.

    Raises:
        ValueError: If ``text`` cannot be read; says why.

    Example:
        >>> parse("10 * (warmup('1 epoch') >> cosine(to=0.1))")
        10.0 * (warmup('1 epoch') >> cosine(to=0.1))
        >>> parse("2 * 3 * cosine()")
        6.0 * cosine(to=0.0)
        >>> parse("__import__('os')")
        Traceback (most recent call last):
        ValueError: schedule must be a number or written like warmup('5%') >> cosine(to=0.1), got \
"__import__('os')": it may call constant, cosine, cosine_restarts, cyclic, exponential, \
exponential_decay, inverse_sqrt, inverse_time, linear, multistep, one_cycle, \
polynomial, stable_decay, step, warmup, not '__import__'
    """
    rule = f"{name} must be a number or written like warmup('5%') >> cosine(to=0.1), got {text!r}"
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two for very deep nesting
        raise ValueError(rule) from None
    try:
        value = _read(tree)
        return value if isinstance(value, Schedule) else shapes.constant(checks.number("it", value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{rule}: {error}") from None


def _read(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() | None as value):
            return value
        case ast.List(elts=entries) | ast.Tuple(elts=entries):
            return [_read(entry) for entry in entries]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -checks.number("what '-' precedes", _read(operand))
        case ast.BinOp(left=left, op=ast.RShift(), right=right):
            return _schedule(left) >> _schedule(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            factor, scaled = checks.number("the left of '*'", _read(left)), _read(right)
            if isinstance(scaled, Schedule):
                return factor * scaled
            return factor * checks.number("the right of '*', if it is no schedule,", scaled)
        case ast.Call(func=ast.Name(id=function), args=args, keywords=keywords):
            return _call(function, [_read(arg) for arg in args], keywords)
    raise ValueError(f"it must be made of {', '.join(FUNCTIONS)}, '>>' and '*', not {ast.unparse(node)!r}")


def _schedule(node: ast.expr) -> Schedule:
    value = _read(node)
    if not isinstance(value, Schedule):
        raise ValueError(f"both sides of '>>' must be schedules, not {value!r}")
    return value


def _call(function: str, args: list[Any], keywords: list[ast.keyword]) -> Schedule:
    if function not in FUNCTIONS:
        close = checks.nearest(function, FUNCTIONS, count=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"it may call {', '.join(FUNCTIONS)}, not {function!r}{meant}")
    return FUNCTIONS[function](*args, **{str(word.arg): _read(word.value) for word in keywords})
