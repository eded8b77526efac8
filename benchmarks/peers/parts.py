"""Parts of packages whose whole cannot be imported here, because it needs torchvision or much else.

What runs is their own code, to the letter.
"""

from __future__ import annotations

import ast
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["cut", "without_its_door"]


def without_its_door(*packages: str) -> None:
    """Let parts of ``packages`` be imported without what their ``__init__`` imports, the outer ones first."""
    for package in packages:
        if package in sys.modules:
            continue
        spec = find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"no package {package}")
        module = ModuleType(package)
        module.__spec__ = ModuleSpec(package, None, is_package=True)  # whoever looks for it finds it
        module.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[package] = module


def cut(package: str, file: str, *names: str, **given: Any) -> dict[str, Any]:
    """Return the functions and classes ``names`` of a file of the distribution ``package``.

    ``given`` are the names that they use of what the file imports.
    """
    path = Path(str(distribution(package).locate_file(file)))
    found = [part for part in ast.parse(path.read_text("utf-8")).body if getattr(part, "name", "") in names]
    space = dict(given)
    exec(compile(ast.Module([_FUTURE, *found], []), str(path), "exec"), space)
    return space


# Annotations may name what is not given.
_FUTURE = ast.parse("from __future__ import annotations").body[0]
