"""Settings as text, the same in every process."""

from __future__ import annotations

import math
import re

__all__ = ["written"]


def written(value: object) -> str:
    """Return what writes ``value``: ``repr``, but types and functions by module and qualified name.

    Addresses, which differ from process to process, are left out. So two functions of one name, such as two
    lambdas of one function, are written alike.

    Example:
        >>> from torch import nn
        >>> written(("head.*", nn.Linear)), written([math.inf]), written(lambda name, parameter: True)
        ("('head.*', torch.nn.modules.linear.Linear)", "[float('inf')]", \
'lightning_tricks.lifecycle.written.<lambda>')
    """
    if type(value) is list:
        return f"[{', '.join(map(written, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(written, value))}{',' * (len(value) == 1)})"
    if isinstance(value, float) and math.isinf(value):
        return f"float('{value}')"  # ``inf`` is no word of Python's
    if callable(value) and (name := getattr(value, "__qualname__", None)):
        return f"{value.__module__}.{name}"
    return repr(value) if isinstance(value, str) else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
