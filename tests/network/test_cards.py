"""The cards of the network's techniques: what each shows can be pasted into an empty file, and is a run."""

from __future__ import annotations

import ast
import builtins
import doctest
import inspect

import pytest

import lightning_tricks
from lightning_tricks.lifecycle.technique import Technique

TECHNIQUES = [
    each
    for each in (getattr(lightning_tricks, name) for name in lightning_tricks.__all__)
    if inspect.isclass(each)
    and issubclass(each, Technique)
    and each.__module__.startswith("lightning_tricks.network.")
]


def shown(technique: type) -> str:
    """Return the code of the example in a card."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(technique) or "")
    return "".join(example.source for example in examples)


def unknown(code: str) -> set[str]:
    """Return the names that ``code`` uses and nothing in it makes."""
    made, used = set(dir(builtins)), set()
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                made.add(name)
            case ast.alias(name=name, asname=other):
                made.add(other or name)
            case ast.ExceptHandler(name=str(name)):
                made.add(name)
    return used - made


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_card_is_a_run_that_needs_nothing_else(technique):
    code = shown(technique)
    assert unknown(code) == set()
    assert ".fit(" in code and "to_yaml(" in code


def test_all_of_them_are_looked_at():
    assert len(TECHNIQUES) >= 10


def test_a_missing_import_is_seen():
    assert unknown("import torch\nfor x in y:\n    print(torch, nn.Linear(x))") == {"y", "nn"}
