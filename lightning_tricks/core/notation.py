"""Schedules written as text, so that YAML and a command line can hold them.

The text is read as an expression of the few functions below, numbers, ``*`` and ``>>``; nothing in it
is ever executed as code.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

from lightning_tricks.core import checks, shapes
from lightning_tricks.core.schedule import Schedule

__all__ = ["FUNCTIONS", "as_schedule", "parse"]

FUNCTIONS: dict[str, Callable[..., Schedule]] = {
    "constant": shapes.constant,
    "cosine": shapes.cosine,
    "exponential": shapes.exponential,
    "linear": shapes.linear,
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
        ValueError: If the text cannot be read, or a value of the schedule lies outside the range.
    """
    if isinstance(value, str):
        value = parse(value, name=name)
    if isinstance(value, Schedule):
        for end in value.bounds():
            checks.in_range(f"every value of {name}", end, low, high, open_low=open_low, open_high=open_high)
        return value
    checks.in_range(name, value, low, high, open_low=open_low, open_high=open_high)
    return shapes.constant(float(value))  # type: ignore[arg-type]  # in_range accepts only numbers


def parse(text: str, *, name: str = "schedule") -> Schedule:
    """Return the schedule that ``text`` writes.

    Args:
        text: Such as ``"warmup('5%') >> cosine(to=0.1)"`` or ``"0.5"``.
        name: What the user calls the setting, for errors.

    Raises:
        ValueError: If ``text`` cannot be read; says which piece of it.

    Example:
        >>> parse("10 * (warmup('1 epoch') >> cosine(to=0.1))")
        10.0 * (warmup('1 epoch') >> cosine(to=0.1))
        >>> parse("__import__('os')")
        Traceback (most recent call last):
        ValueError: schedule may call constant, cosine, exponential, linear, warmup, got '__import__'
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(
            f"{name} must be written like warmup('5%') >> cosine(to=0.1), got {text!r}"
        ) from None
    value = _read(tree, name)
    return value if isinstance(value, Schedule) else shapes.constant(checks.number(name, value))


def _read(node: ast.expr, name: str) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -checks.number(name, _read(operand, name))
        case ast.BinOp(left=left, op=ast.RShift(), right=right):
            return _schedule(left, name) >> _schedule(right, name)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return checks.number(name, _read(left, name)) * _schedule(right, name)
        case ast.Call(func=ast.Name(id=function), args=args, keywords=keywords):
            return _call(function, [_read(arg, name) for arg in args], keywords, name)
    raise ValueError(
        f"{name} must be made of {', '.join(FUNCTIONS)}, '>>' and '*', got {ast.unparse(node)!r}"
    )


def _schedule(node: ast.expr, name: str) -> Schedule:
    value = _read(node, name)
    if not isinstance(value, Schedule):
        raise ValueError(f"{name} must have schedules on both sides of '>>' and right of '*', got {value!r}")
    return value


def _call(function: str, args: list[Any], keywords: list[ast.keyword], name: str) -> Schedule:
    if function not in FUNCTIONS:
        raise ValueError(f"{name} may call {', '.join(FUNCTIONS)}, got {function!r}")
    settings = {str(word.arg): _read(word.value, name) for word in keywords}
    try:
        return FUNCTIONS[function](*args, **settings)
    except TypeError as error:
        raise ValueError(f"{name} has a wrong call: {error}") from None
