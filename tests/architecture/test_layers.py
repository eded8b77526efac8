"""Who may import whom: cli -> study -> recipes -> stages -> lifecycle -> core -> torch."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.architecture.sources import PACKAGE, STAGES, Source, last_name

RANKS = {
    "core": 0,
    "lifecycle": 1,
    **dict.fromkeys(STAGES, 2),
    "recipes": 3,
    "study": 4,
    "": 5,  # the package's root shows the user what all folders but the command line hold
    "cli": 6,
}
LIGHTNING = {"lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning"}
OPTIONAL = {
    "jsonargparse",
    "matplotlib",
    "optuna",
    "schedulefree",
    "shtab",
    "sklearn",
    "torchdata",
    "torchjd",
    "wandb",
}


@dataclass(frozen=True)
class Import:
    node: ast.AST
    module: str
    lazy: bool = False  # inside a function
    typing: bool = False  # under ``if TYPE_CHECKING``

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports(source: Source) -> Iterator[Import]:
    """Yield what a file imports; a name that is imported from a module counts as its part."""
    yield from _imports(source, source.tree, lazy=False, typing=False)


def _imports(source: Source, node: ast.AST, *, lazy: bool, typing: bool) -> Iterator[Import]:
    for module in _modules(source, node):
        yield Import(node, module, lazy, typing)
    lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    hints = node.body if isinstance(node, ast.If) and _asks_for_typing(node.test) else []
    for child in ast.iter_child_nodes(node):
        yield from _imports(source, child, lazy=lazy, typing=typing or child in hints)


def _modules(source: Source, node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            above = source.path.split("/")[:-level] if level else []
            origin = ".".join([*above, module] if module else above)
            return [f"{origin}.{alias.name}" for alias in names]
    return []


def _asks_for_typing(test: ast.expr) -> bool:
    return last_name(test) == "TYPE_CHECKING"


def against_the_order(source: Source) -> list[str]:
    """Report imports that point from a lower layer to a higher one, or between equals."""
    if source.folder not in RANKS:
        return [f"{source.path}: {source.folder!r} is not one of the folders {sorted(RANKS)}"]
    found = []
    for imported in imports(source):
        if imported.top != PACKAGE:
            continue
        part = f"{imported.module}.".split(".")[1]
        target = part if part in RANKS else ""
        if target != source.folder and RANKS[target] >= RANKS[source.folder]:
            complaint = f"{source.folder or 'the root'} imports {imported.module}"
            found.append(source.at(imported.node, complaint))
    return found


def beyond_torch(source: Source) -> list[str]:
    """Report what the core imports at run time apart from torch and the standard library."""
    if source.folder != "core":
        return []
    allowed = sys.stdlib_module_names | {"torch", PACKAGE}
    return [
        source.at(imported.node, f"core imports {imported.module}")
        for imported in imports(source)
        if not imported.typing and imported.top not in allowed
    ]


def lightning_at_run_time(source: Source) -> list[str]:
    """Report imports of Lightning in the core and the stages, except for type hints."""
    if source.folder not in {"core", *STAGES}:
        return []
    return [
        source.at(imported.node, f"{source.folder} imports {imported.module} at run time")
        for imported in imports(source)
        if not imported.typing and imported.top in LIGHTNING
    ]


def optional_at_once(source: Source) -> list[str]:
    """Report optional packages that are imported with the file, not where they are used."""
    return [
        source.at(imported.node, f"imports the optional {imported.top} at module level")
        for imported in imports(source)
        if not (imported.lazy or imported.typing) and imported.top in OPTIONAL
    ]


@pytest.mark.xdist_group("architecture")
@pytest.mark.parametrize("rule", [against_the_order, beyond_torch, lightning_at_run_time, optional_at_once])
def test_package_obeys(rule, package):
    assert package
    assert [complaint for source in package for complaint in rule(source)] == []


@pytest.mark.parametrize(
    ("rule", "folder", "text"),
    [
        (against_the_order, "core", "from lightning_tricks.lifecycle import clock"),
        (against_the_order, "core", "from lightning_tricks import gradients"),
        (against_the_order, "core", "def f():\n    import lightning_tricks.study"),
        (against_the_order, "gradients", "from lightning_tricks.averaging.ema import EMAWeights"),
        (against_the_order, "gradients", "from ..averaging import ema"),
        (against_the_order, "fusion", "from lightning_tricks import EMAWeights"),
        (against_the_order, "recipes", "import lightning_tricks"),
        (against_the_order, "study", "from lightning_tricks.cli import main"),
        (against_the_order, "plugins", "import torch"),
        (beyond_torch, "core", "import numpy as np"),
        (beyond_torch, "core", "from lightning.pytorch import Trainer"),
        (lightning_at_run_time, "updates", "import lightning as L"),
        (lightning_at_run_time, "updates", "def f():\n    from lightning.pytorch import Trainer"),
        (
            lightning_at_run_time,
            "updates",
            "if TYPE_CHECKING:\n    import torch\nelse:\n    import lightning",
        ),
        (optional_at_once, "reporting", "import wandb"),
        (optional_at_once, "reporting", "try:\n    import optuna\nexcept ImportError:\n    pass"),
        (optional_at_once, "cli", "import jsonargparse"),
    ],
)
def test_rule_sees_a_breach(rule, folder, text):
    assert len(rule(Source(f"{PACKAGE}/{folder}/file.py", text))) == 1


@pytest.mark.parametrize(
    ("rule", "folder", "text"),
    [
        (against_the_order, "gradients", "from lightning_tricks.core import select"),
        (against_the_order, "gradients", "from . import clip"),
        (against_the_order, "gradients", "from lightning_tricks.gradients.clip import clip_norm_"),
        (against_the_order, "cli", "from lightning_tricks import __version__"),
        (beyond_torch, "core", "import math\nfrom torch import nn"),
        (
            lightning_at_run_time,
            "updates",
            "import typing\nif typing.TYPE_CHECKING:\n    from lightning.pytorch import Trainer",
        ),
        (lightning_at_run_time, "lifecycle", "import lightning"),
        (optional_at_once, "reporting", "def draw():\n    import matplotlib.pyplot as plt"),
    ],
)
def test_rule_lets_pass(rule, folder, text):
    assert rule(Source(f"{PACKAGE}/{folder}/file.py", text)) == []


def test_the_root_may_import_all_but_the_command_line():
    def root(text):
        return against_the_order(Source(f"{PACKAGE}/__init__.py", text))

    assert root("from lightning_tricks.study import ablation") == []
    assert len(root("from lightning_tricks.cli import main")) == 1
