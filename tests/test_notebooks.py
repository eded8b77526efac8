"""Each notebook is its source of plain Python, run from the start."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
PLACE = re.compile(r"/tmp/|/home/|/root/|/usr/|site-packages")


def source_cells(name: str) -> list[tuple[str, str]]:
    """Return kind and text of each cell of the source, in jupytext's percent format."""
    cells = []
    for part in (FOLDER / f"{name}.py").read_text().split("\n# %%")[1:]:
        kind, _, text = part.partition("\n")
        if kind.strip() == "[markdown]":
            cells.append(("markdown", re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip()))
        else:
            cells.append(("code", text.strip()))
    return cells


def notebook_cells(name: str) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    return cells


def test_every_notebook_has_its_source() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    assert len(NAMES) > 5


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_its_source_and_was_run_from_the_start(name: str) -> None:
    cells = notebook_cells(name)
    # `make notebooks` brings both in step, and runs them.
    assert [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in cells] == source_cells(name)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    kinds = {output["output_type"] for output in outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}, "an error"
    assert {output.get("name") for output in outputs} <= {None, "stdout"}, "a warning"
    assert any("image/png" in output.get("data", {}) for output in outputs), "no figure"


@pytest.mark.parametrize("name", NAMES)
def test_notebook_asks_its_question_first_and_shows_nothing_of_the_machine(name: str) -> None:
    cells = notebook_cells(name)
    assert cells[0]["cell_type"] == "markdown"
    assert "".join(cells[0]["source"]).startswith("# ")
    texts = [
        "".join(text)
        for cell in cells
        for output in cell.get("outputs", [])
        for text in (output.get("text", ""), output.get("data", {}).get("text/plain", ""))
    ]
    assert not [text for text in texts if PLACE.search(text)]


def test_they_run_without_the_options_of_the_tests(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "conftest.py", tmp_path)  # in its own folder, as `make notebooks` has it
    (tmp_path / "test_any.py").write_text("def test(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", tmp_path, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "1 passed" in done.stdout, done.stdout
