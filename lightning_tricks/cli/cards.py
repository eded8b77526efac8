"""What the package offers, as its docstrings describe it: read and not run.

So the command line answers at once: neither torch nor Lightning is loaded.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lightning_tricks
from lightning_tricks import _offered
from lightning_tricks.cli.card_text import Parts, markdown_of, parts_of
from lightning_tricks.cli.references import Reference, references_in

__all__ = ["FAMILIES", "KINDS", "Card", "Setting", "card_of", "cards", "families"]

FAMILIES = (
    "network",
    "objectives",
    "gradients",
    "updates",
    "averaging",
    "fusion",
    "reporting",
    "lifecycle",
    "study",
    "core",
)
"""The folders that hold what is offered: the stages as data flow through them, then all else."""

KINDS = ("technique", "mixin", "method", "class", "schedule", "function")


@dataclass(frozen=True)
class Setting:
    """A setting, argument or attribute.

    Attributes:
        name: What it is called.
        kind: Its type, as it is annotated.
        default: As it is written; ``None`` if it must be given.
        about: What the docstring says of it.
    """

    name: str
    kind: str
    default: str | None
    about: str


@dataclass(frozen=True)
class Card:
    """What is to be said of one name.

    Attributes:
        name: The name.
        kind: ``technique``, ``mixin``, ``method`` (of fusion), ``class``, ``schedule`` or ``function``.
        module: Where it is defined.
        parts: Of its docstring.
        settings: What it takes, its own first.
        subject: What the file is about, in its first line.
        formula: What the file says of it, mathematics above all.
        references: The sources that the file names.
    """

    name: str
    kind: str
    module: str
    parts: Parts
    settings: tuple[Setting, ...]
    subject: str
    formula: str
    references: tuple[Reference, ...]

    @property
    def family(self) -> str:
        """The folder that holds it."""
        return self.module.split(".")[1]

    def plain(self) -> dict[str, Any]:
        """Return its parts as JSON takes them."""
        return {
            "name": self.name,
            "kind": self.kind,
            "family": self.family,
            "module": self.module,
            "summary": self.parts.summary,
            "text": self.parts.text,
            **{heading.lower(): said for heading, said in self.parts.bullets.items()},
            "settings": [vars(setting) for setting in self.settings],
            "example": self.parts.example,
            "formula": self.formula,
            "references": [vars(reference) for reference in self.references],
        }


@cache
def cards() -> tuple[Card, ...]:
    """Return the cards of all that the package offers: by family, techniques first."""
    found = [card_of(name) for name in _offered()]
    by_place = sorted(found, key=lambda c: (FAMILIES.index(c.family), KINDS.index(c.kind), c.name.lower()))
    return tuple(by_place)


def families() -> dict[str, str]:
    """Return the families with what is in them, as their folders say."""
    files = {name: _File.of(f"{_INSIDE}{name}") for name in FAMILIES}
    return {name: parts_of(ast.get_docstring(file.tree) or "").summary for name, file in files.items()}


@cache
def card_of(name: str) -> Card:
    """Return the card of ``name``, which the package offers.

    Raises:
        KeyError: If it does not.
    """
    file = _File.of(_offered()[name])
    node = file.defined[name]
    lineage = list(_lineage(file, node))
    docstrings = [ast.get_docstring(each) or "" for each in lineage]
    parts = parts_of(docstrings[0])
    about = {key: text for each in reversed(docstrings) for key, text in parts_of(each).settings.items()}
    said = ast.get_docstring(file.tree) or ""
    sort = _kind(node, {each.name for each in lineage}, parts)
    settings = (Setting(*each, about.get(each[0], "")) for each in _settings(lineage))
    return Card(
        name=name,
        kind=sort,
        module=file.module,
        parts=parts,
        # A mixin declares what it makes itself, too.
        settings=tuple(each for each in settings if each.about or sort != "mixin"),
        subject=said.partition("\n")[0],
        formula=markdown_of(said.partition("\nReference")[0].partition("\n")[2]).strip("\n"),
        references=tuple(references_in(said)),
    )


_Definition = ast.ClassDef | ast.FunctionDef
_INSIDE = f"{lightning_tricks.__name__}."


@dataclass(frozen=True)
class _File:
    """A file of the package: what it defines, and what it imports from others of them."""

    module: str
    tree: ast.Module
    defined: dict[str, _Definition]
    imported: dict[str, str]

    @staticmethod
    @cache
    def of(module: str) -> _File:
        folder = Path(lightning_tricks.__file__).parents[1].joinpath(*module.split("."))
        path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        tree = ast.parse(path.read_text("utf-8"))
        defined = {node.name: node for node in tree.body if isinstance(node, _Definition)}
        imported = {
            alias.name: node.module
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_INSIDE)
            for alias in node.names
            if node.module
        }
        return _File(module, tree, defined, imported)


def _lineage(file: _File, node: _Definition) -> Iterator[_Definition]:
    """Yield ``node`` and, of a class, its bases in this package, the nearest first."""
    yield node
    for base in node.bases if isinstance(node, ast.ClassDef) else ():
        name = ast.unparse(base).partition("[")[0]
        if name in file.defined:
            yield from _lineage(file, file.defined[name])
        elif name in file.imported:
            origin = _File.of(file.imported[name])
            yield from _lineage(origin, origin.defined[name])


def _kind(node: _Definition, bases: set[str], parts: Parts) -> str:
    if isinstance(node, ast.FunctionDef):
        return "schedule" if node.returns is not None and ast.unparse(node.returns) == "Part" else "function"
    if "Technique" in bases:
        return "technique"
    if "FusionMethod" in bases:
        return "method"
    return "mixin" if parts.bullets else "class"


def _settings(lineage: list[_Definition]) -> Iterator[tuple[str, str, str | None]]:
    """Yield name, type and default of each setting."""
    seen = set()
    for node in lineage:
        if isinstance(node, ast.FunctionDef):
            found = _arguments(node)
        else:
            methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
            found = _arguments(methods["__init__"]) if "__init__" in methods else _fields(node)
        for each in found:
            if each[0] not in seen:
                seen.add(each[0])
                yield each


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str | None]]:
    for entry in node.body:
        if not isinstance(entry, ast.AnnAssign) or not isinstance(entry.target, ast.Name):
            continue
        name, kind, default = entry.target.id, ast.unparse(entry.annotation), entry.value
        if name.startswith("_") or kind.startswith("ClassVar"):
            continue
        if isinstance(default, ast.Call) and ast.unparse(default.func) == "field":
            told = {keyword.arg: keyword.value for keyword in default.keywords}
            default = told.get("default") or _made_by(told.get("default_factory"))
        yield name, kind, None if default is None else ast.unparse(default)


def _made_by(factory: ast.expr | None) -> ast.expr | None:
    if factory is None:
        return None
    return factory.body if isinstance(factory, ast.Lambda) else ast.Call(factory, [], [])


def _arguments(node: ast.FunctionDef) -> Iterator[tuple[str, str, str | None]]:
    given = [*node.args.posonlyargs, *node.args.args]
    defaults = [*[None] * (len(given) - len(node.args.defaults)), *node.args.defaults]
    any_number = [(node.args.vararg, None)] if node.args.vararg else []
    by_name = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    for argument, default in [*zip(given, defaults, strict=True), *any_number, *by_name]:
        if argument.arg != "self":
            kind = "" if argument.annotation is None else ast.unparse(argument.annotation)
            yield argument.arg, kind, None if default is None else ast.unparse(default)
