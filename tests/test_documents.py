"""The code in the documents runs, and what they name and quote is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback

import lightning_tricks
from benchmarks import memory, recipe_cost
from benchmarks.cards import README, table_of_techniques
from benchmarks.comparison import comparison
from benchmarks.peers.lines import rows
from benchmarks.peers.moving_over import COMPARED
from benchmarks.readme import table_of
from lightning_tricks.recipes import transformer
from tests.contract.cases import CASES
from tests.yaml_trainer import yaml_trainer

ROOT = Path(__file__).parent.parent
PACKAGE = lightning_tricks.__name__


def blocks(language: str, document: str = "README.md") -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# What a newcomer's Trainer says of itself, on whatever machine that is.
@pytest.mark.filterwarnings("ignore:.*tensorboardX|.*does not have many workers|.*smaller than the logging")
@pytest.mark.parametrize("document", ["README.md", "docs/fusion.md"])
def test_python_blocks_run_in_order(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert len(blocks("python", document)) >= 2
    for block in blocks("python", document):
        exec(block, names)


def test_what_the_readme_says_to_write_instead_can_be_written() -> None:
    _, _, table = (ROOT / "README.md").read_text().partition("| instead of | write |")
    assert len(rows()) == len(table.partition("\n\n")[0].splitlines()[2:]) > 10
    assert all(isinstance(row.ours(), Callback) and isinstance(row.alike(), Callback) for row in rows())
    # Whether both lines do the same, benchmarks/peers/moving_over.py asks where the others are installed.
    assert {row.before.partition("(")[0] for row in rows()} == set(COMPARED)


def test_the_readme_compares_by_the_recorded_figures() -> None:
    assert table_of(ROOT / "README.md", "comparison") == comparison(ROOT / "benchmarks" / "results")


@pytest.mark.parametrize("benchmark", [recipe_cost, memory])
def test_the_measurements_are_the_recorded_figures(benchmark: ModuleType) -> None:
    name = benchmark.__name__.rpartition(".")[2]
    figures = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    assert table_of(ROOT / "docs" / "measurements.md", name) == benchmark.table(figures)


def test_a_size_that_does_not_fit_into_memory_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_cost, "available_memory", lambda: 12 * 10**9)
    monkeypatch.setattr(recipe_cost, "grown", lambda tensors, entries, rounds: {"added_us": 1.0})
    rows, left_out = recipe_cost.by_entries([10**8, 10**9], rounds=1)
    assert rows == {10**8: {"added_us": 1.0}}
    assert left_out == {"1,000,000,000 entries": "13.2 GB are needed, 12.0 GB are available"}


def test_links_within_the_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text()):
            path, _, place = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), f"{document.name}: {link}"
            heads = re.findall(r"^#+ (.*)$", target.read_text() if place else "", re.MULTILINE)
            # As GitHub makes anchors of headings.
            anchors = {re.sub(r"[^\w\s-]", "", head).lower().replace(" ", "-") for head in heads}
            assert not place or place in anchors, link


def test_yaml_block_builds_the_techniques(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (config,) = blocks("yaml")
    trainer = yaml_trainer(yaml.safe_load(config))
    kinds = [type(callback).__name__ for callback in trainer.callbacks]
    assert kinds[:3] == ["GradientClip", "WarmupCosine", "EMAWeights"]


def test_text_block_is_what_the_code_above_it_prints() -> None:
    recipe = transformer()
    recipe[0].max_norm = 0.5
    shown, report = blocks("text")
    assert shown == f"{recipe}\n"
    assert report.startswith("RunReport: what was done")  # with times, which differ


def test_shell_blocks_name_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_contributing_quotes_the_files_that_it_names() -> None:
    (card,), (entry,) = blocks("text", "CONTRIBUTING.md"), blocks("python", "CONTRIBUTING.md")
    for quote, path in ((card, "lightning_tricks/gradients/noise.py"), (entry, "tests/contract/cases.py")):
        assert f"`{path}`" in (ROOT / "CONTRIBUTING.md").read_text()
        for line in quote.splitlines():
            assert line.removesuffix("...").strip() in (ROOT / path).read_text(), line


def test_contributing_names_files_that_are_there_and_every_law() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"[\w/]+/\w+\.py\b", text)
    assert len(named) > 8
    assert [path for path in named if not any((ROOT / top / path).exists() for top in ("", PACKAGE))] == []
    laws = re.findall(r'^@law\("(\w+)"\)', (ROOT / "tests/contract/test_laws.py").read_text(), re.MULTILINE)
    assert laws and [law for law in laws if not re.search(rf"\b{law}\b", text)] == []


def test_the_readme_has_the_sentences_of_the_cards() -> None:
    table = table_of_techniques()
    assert table_of(README, "techniques").rstrip() == table, "run `make cards`"
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(CASES)
