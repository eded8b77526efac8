"""Technique x regime: what the tests themselves have found, as the table of the README.

A cell is what all tests of that technique in that regime came to: *right* if they passed, or the reason for
which it is refused, which a test records as the property ``refused``. Techniques that do the same everywhere
share a row, and regimes in which all do the same a column. A run that holds every cell compares the table
with the README and fails if they differ; with ``--matrix`` it writes it there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.readme import replace_table, table_of

README = Path(__file__).parents[1] / "README.md"


def cell_of(parameters: dict[str, Any], names: dict[int, str]) -> tuple[str, str] | None:
    """Return regime and technique of a test by its parameters; ``None`` if it is not of one cell."""
    regime = parameters.get("world") or names.get(id(parameters.get("regime")))
    technique = parameters.get("technique") or names.get(id(parameters.get("case")))
    return (regime, technique) if regime and technique else None


def folded(regimes: list[str], cells: dict[str, list[str]]) -> list[str]:
    """Return the lines of a table in which equal rows, and equal columns, are one; of most names the last."""
    columns: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, column in enumerate(zip(*cells.values(), strict=True)):
        columns[column].append(index)
    heads = ["; ".join(regimes[index] for index in alike) for alike in columns.values()]
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, row in cells.items():
        rows[tuple(row[alike[0]] for alike in columns.values())].append(name)
    most = max(rows, key=lambda row: len(rows[row]))
    last = {most: ["all others"]} if len(rows[most]) > 1 else {}
    return [
        f"| | {' | '.join(heads)} |",
        "|---|" + ":-:|" * len(heads),
        *(
            f"| {', '.join(names)} | {' | '.join(row)} |"
            for row, names in [*((row, rows[row]) for row in rows if row not in last), *last.items()]
        ),
    ]


class Matrix:
    """A pytest plugin that notes the outcome of each cell."""

    def __init__(self, *, write: bool) -> None:
        self.write = write
        self.outcomes: dict[tuple[str, str], set[str]] = defaultdict(set)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        from tests.contract.cases import CASES
        from tests.contract.regimes import REGIMES

        names = {id(value): name for known in (CASES, REGIMES) for name, value in known.items()}
        callspec = getattr(item, "callspec", None)
        if callspec and (cell := cell_of(callspec.params, names)):
            item.user_properties.append(("cell", cell))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told: dict[str, Any] = dict(report.user_properties)
        if "cell" in told and not report.skipped and (report.when == "call" or report.failed):
            # From another process, a tuple comes as a list.
            self.outcomes[tuple(told["cell"])].add("WRONG" if report.failed else told.get("refused", "right"))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        table = self.table()
        if table is None:  # also in each of several processes, which run some of the tests
            return
        if self.write:
            replace_table(README, "matrix", table)
        elif table != table_of(README, "matrix") and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            print("\nThe README's matrix is not what the tests have found: run `make matrix`.")

    def table(self) -> str | None:
        """Return the table; ``None`` unless every cell was run."""
        from tests.contract.cases import CASES
        from tests.contract.regimes import REGIMES
        from tests.distributed.worlds import WORLDS

        regimes = [*REGIMES, *WORLDS, "DeepSpeed"]
        if any((regime, name) not in self.outcomes for regime in regimes for name in CASES):
            return None
        notes: list[str] = []
        cells = {
            name: [self._cell(name, self.outcomes[regime, name], notes) for regime in regimes]
            for name in CASES
        }
        lines = folded(list(regimes), cells)
        return "\n".join([*lines, "", *(f"{n}. {note}" for n, note in enumerate(notes, 1))]).rstrip()

    @staticmethod
    def _cell(name: str, outcomes: set[str], notes: list[str]) -> str:
        if outcomes <= {"right"} or "WRONG" in outcomes:
            return min(outcomes)
        # One note for all techniques and, without the name of a class that only the tests have, all regimes.
        reason = re.sub(
            r", got (False in )?[A-Z]\w+(?=:|$)", "", min(outcomes - {"right"}).replace(name, "it")
        )
        notes += [] if reason in notes else [reason]
        return f"refused ({notes.index(reason) + 1})"
