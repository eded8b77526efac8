"""Where the figures of a benchmark go: a JSON file with the machine, and a table in a document."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.comparison import comparison
from benchmarks.machine import machine
from benchmarks.readme import document_of, replace_table

__all__ = ["ROOT", "record", "rounds_asked"]

ROOT = Path(__file__).parents[1]


def record(name: str, figures: dict[str, Any], table: str) -> None:
    """Write ``figures`` to ``benchmarks/results/NAME.json``, ``table`` where its marks are, and print it."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    # JSON knows no NaN, which stands for what was not measured.
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1).replace("NaN", "null") + "\n")
    document = document_of(ROOT, name)
    replace_table(document, name, table)
    replace_table(ROOT / "README.md", "comparison", comparison(path.parent))
    print(table, f"\nwritten to {path} and {document}")


def rounds_asked(description: str | None) -> int:
    """Return what the command line says of rounds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="turns of every variant (default: 30)")
    rounds: int = parser.parse_args().rounds
    return rounds
