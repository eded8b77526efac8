"""What the table of peers says of the techniques here holds; peers need not be installed."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.peers.__main__ import QUESTIONS, table
from benchmarks.peers.cases import Case, Verdict, judged, of_error, verdict_of
from benchmarks.readme import table_of

MOVING_OVER = import_module("benchmarks.peers.moving_over").CASES
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "peers"
OURS = [
    pytest.param(case, id=f"{name}: {case.who}")
    for name in QUESTIONS
    for case in import_module(f"benchmarks.peers.{name}").CASES
    if not case.peer
]


@pytest.mark.parametrize("case", OURS)
def test_ours_is_right_or_refuses_or_says_that_it_does_not_do_it(case: Case) -> None:
    verdict = verdict_of(case)
    if verdict is None and case.needs is not None:
        pytest.skip(f"{case.needs} is not installed")
    # A line of the README that is refused is no line to write.
    allowed = ("right",) if case in MOVING_OVER else ("right", "refused", "known")
    assert verdict is not None and verdict.outcome in allowed, verdict


def test_every_script_with_a_question_is_asked() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py") if "\nQUESTION = " in path.read_text()}
    assert scripts == set(QUESTIONS)


def test_the_document_says_what_was_recorded() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text())["questions"]
    assert table_of(ROOT / "docs" / "peers.md", "peers") == table(found)


def test_what_writes_where_it_is_leaves_nothing_there() -> None:
    def writes() -> Verdict:
        Path("schedule.yaml").write_text("")
        return judged(True, "")

    assert verdict_of(Case("one", writes)).outcome == "right"  # type: ignore[union-attr]
    assert not Path("schedule.yaml").exists()


def test_verdicts() -> None:
    def forgotten() -> None:
        return {}["what"]

    def refuses() -> None:
        raise ValueError("no")

    outcomes = [
        verdict_of(Case("one", ask)).outcome  # type: ignore[union-attr, arg-type]
        for ask in (lambda: judged(True, ""), lambda: judged(False, ""), forgotten, refuses)
    ]
    assert outcomes == ["right", "wrong", "fails", "refused"]
    assert verdict_of(Case("absent", refuses, "no-such-distribution")) is None  # type: ignore[arg-type]
    assert of_error("    assert x", "AssertionError").outcome == "refused"
