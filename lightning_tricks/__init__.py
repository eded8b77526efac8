"""Training techniques for PyTorch Lightning, as parts that can be trusted.

Add a technique to ``Trainer(callbacks=[...])``; each one's settings, effects and costs stand on its
card, the docstring of its class.
"""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_tricks.public import *  # noqa: F403  # what it offers stands there

__version__ = "0.1.0"


@cache
def _offered() -> dict[str, str]:
    """Return the module of each name that the package offers.

    Where they are listed is read and not run: Lightning takes longer to load than most models to fuse.
    """
    listed = ast.parse(Path(__file__).with_name("public.py").read_text("utf-8")).body
    imports = [node for node in listed if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return list(_offered())
    if name not in _offered():
        from lightning_tricks.core.checks import nearest

        meant = f"; did you mean {close[0]!r}?" if (close := nearest(name, _offered(), count=1)) else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{meant}")
    value = globals()[name] = getattr(import_module(_offered()[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_offered()})
