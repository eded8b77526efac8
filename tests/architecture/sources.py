"""The repository's Python files as the rules see them, and what several rules read in them."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "lightning_tricks"
BASES = {"Technique", "AveragedWeights", "SnapshotMean", "MixedBatches"}
STAGES = ("network", "objectives", "gradients", "updates", "averaging", "fusion", "reporting")


@dataclass(frozen=True)
class Source:
    """A file: its path from the repository's root, with slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=self.path)

    @property
    def folder(self) -> str:
        """The folder of the package that holds it; "" for the package's root and other trees."""
        parts = self.path.split("/")
        return parts[1] if parts[0] == PACKAGE and len(parts) > 2 else ""

    def at(self, node: ast.AST, complaint: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {complaint}"


def sources(*folders: str) -> list[Source]:
    """Return the Python files under ``folders`` of the repository."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


def last_name(node: ast.expr) -> str:
    """Return ``c`` for ``a.b.c``, ``c[int]`` and ``c(1)``; "" for what has no name."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=inner) | ast.Call(func=inner):
            return last_name(inner)
    return ""


def techniques(source: Source) -> Iterator[ast.ClassDef]:
    """Yield the classes of a file that have a base of techniques among their bases, and are none."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef) and node.name not in BASES:
            yield from [node] if BASES & set(map(last_name, node.bases)) else []
