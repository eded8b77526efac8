"""What files are called, how long they are, and which words may stand where."""

import ast
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

import pytest

import lightning_tricks
from tests.architecture.sources import PACKAGE, STAGES, Source, sources, techniques

LONGEST = 300
TREES = (PACKAGE, "tests", "benchmarks")
SHAPELESS = {"util", "utils", "helper", "helpers", "misc", "common", "tools"}
RUN = {"Trainer", "LightningModule", "trainer", "pl_module"}


def too_long(source: Source) -> list[str]:
    """Report a file of more lines than one can read at a sitting."""
    length = len(source.text.splitlines())
    return [f"{source.path}: {length} lines, more than {LONGEST}"] if length > LONGEST else []


def shapeless_names(source: Source) -> list[str]:
    """Report files and folders whose names do not say what they hold (``base_utils`` too)."""
    path = PurePosixPath(source.path)
    return [
        f"{source.path}: {name!r} does not say what it holds"
        for name in path.with_suffix("").parts
        if SHAPELESS & set(name.lower().split("_"))
    ]


def undescribed_folders(tree: Iterable[Source]) -> list[str]:
    """Report folders without an ``__init__.py`` that says what they hold, in two sentences or more."""
    described = {
        str(PurePosixPath(source.path).parent)
        for source in tree
        if source.path.endswith("/__init__.py")
        and len(re.findall(r"[.?](?=\s|$)", ast.get_docstring(source.tree) or "")) > 1
    }
    folders = {str(PurePosixPath(source.path).parent) for source in tree}
    return [
        f"{folder}/__init__.py: must say in two sentences what lives there"
        for folder in sorted(folders - described)
    ]


def technique_names(tree: Iterable[Source]) -> set[str]:
    """Return the names of the techniques that the stages hold."""
    return {technique.name for source in tree if source.folder in STAGES for technique in techniques(source)}


def names_a_technique(source: Source, names: Iterable[str]) -> list[str]:
    """Report names of techniques in the core and the lifecycle: code, texts and comments alike."""
    if source.folder not in {"core", "lifecycle"}:
        return []
    return [
        f"{source.path}: names the technique {name}"
        for name in sorted(names)
        if re.search(rf"\b{name}\b", source.text)
    ]


def functions_that_know_the_run(source: Source) -> list[str]:
    """Report a stage's module-level functions that mention a Trainer or a LightningModule."""
    if source.folder not in STAGES:
        return []
    return [
        source.at(function, f"{function.name} mentions {word}")
        for function in source.tree.body
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for word in sorted(RUN & _words(function))
    ]


def _words(function: ast.AST) -> set[str]:
    words: set[str] = set()
    for node in ast.walk(function):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.alias(name=word):
                words.add(word)
            case ast.arg(arg=word, annotation=annotation):
                words |= {word, *_quoted(annotation)}
            case ast.FunctionDef(returns=annotation) | ast.AnnAssign(annotation=annotation):
                words |= _quoted(annotation)
    return words


def _quoted(annotation: ast.expr | None) -> set[str]:
    """Return the words of an annotation, those within quotes included."""
    return set(re.findall(r"\w+", ast.unparse(annotation))) if annotation else set()


def complaints(rule, *trees):
    found = sources(*trees)
    assert found
    return [complaint for source in found for complaint in rule(source)]


def sample(folder, text):
    return Source(f"{PACKAGE}/{folder}/file.py", text)


TECHNIQUE = sample("averaging", "class EMAWeights(lifecycle.Technique): ...")


def test_files_are_short():
    assert complaints(too_long, *TREES) == []


def test_files_say_what_they_hold():
    assert complaints(shapeless_names, *TREES) == []


def test_folders_are_described():
    tree = sources(*TREES)
    assert tree
    assert undescribed_folders(tree) == []


@pytest.mark.xdist_group("architecture")
def test_core_and_lifecycle_name_no_technique(package):
    names = technique_names(package)
    assert [complaint for source in package for complaint in names_a_technique(source, names)] == []


@pytest.mark.xdist_group("architecture")
def test_functions_of_the_stages_do_not_know_the_run(package):
    assert package
    assert [complaint for source in package for complaint in functions_that_know_the_run(source)] == []


def test_a_long_file_is_seen():
    assert too_long(sample("core", "x = 1\n" * LONGEST)) == []
    assert len(too_long(sample("core", "x = 1\n" * (LONGEST + 1)))) == 1


def test_shapeless_names_are_seen():
    for path in ("utils.py", "core/_helpers.py", "core/base_utils.py", "common/clip.py"):
        assert len(shapeless_names(Source(f"{PACKAGE}/{path}", ""))) == 1
    assert shapeless_names(Source(f"{PACKAGE}/core/tensors.py", "")) == []


def test_folders_without_description_are_seen():
    file = Source(f"{PACKAGE}/core/select.py", "")
    silent = Source(f"{PACKAGE}/core/__init__.py", "import torch")
    short = Source(f"{PACKAGE}/core/__init__.py", '"""The core."""')
    described = Source(f"{PACKAGE}/core/__init__.py", '"""The core. It is torch.nn alone."""')
    assert len(undescribed_folders([file])) == 1
    assert len(undescribed_folders([file, silent])) == len(undescribed_folders([file, short])) == 1
    assert undescribed_folders([file, described]) == []


def test_names_of_techniques_are_seen():
    names = technique_names([TECHNIQUE, sample("lifecycle", "class ExactResume(Technique): ...")])
    assert names == {"EMAWeights"}
    for text in ("EMAWeights()", "x: 'EMAWeights'", '"""As EMAWeights does."""'):
        assert len(names_a_technique(sample("core", text), names)) == 1
        assert len(names_a_technique(sample("lifecycle", text), names)) == 1
    assert names_a_technique(sample("core", "EMAWeightsOf = 1"), names) == []
    assert names_a_technique(sample("recipes", "EMAWeights()"), names) == []


def test_functions_that_know_the_run_are_seen():
    for text in (
        "def f(model: 'pl.Trainer'): ...",
        "def f(model: LightningModule): ...",
        "def f(trainer): ...",
        "def f() -> 'list[Trainer]': ...",
        "def f(x):\n    return x.trainer.model",
        "async def f(x):\n    y: 'Trainer' = x",
        "def f():\n    from lightning.pytorch import Trainer",
    ):
        assert len(functions_that_know_the_run(sample("updates", text))) == 1
        assert functions_that_know_the_run(sample("lifecycle", text)) == []
    method = "class A:\n    def on_fit_start(self, trainer, pl_module): ..."
    assert functions_that_know_the_run(sample("updates", method)) == []
    advice = "def f():\n    raise ValueError('set Trainer(max_steps=...)')"
    assert functions_that_know_the_run(sample("updates", advice)) == []


def test_a_misspelt_name_is_told_with_the_nearest() -> None:
    misspelt = "EMAWeigths"
    with pytest.raises(AttributeError, match=f"no attribute '{misspelt}'; did you mean 'EMAWeights'"):
        getattr(lightning_tricks, misspelt)
