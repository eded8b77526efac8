"""The README's matrix says of each technique and regime what it says cell by cell."""

from __future__ import annotations

from tests.matrix import folded


def test_equal_rows_and_columns_become_one() -> None:
    cells = {"A": ["x", "x", "y"], "B": ["x", "x", "z"], "C": ["x", "x", "y"]}
    assert folded(["one", "two", "three"], cells) == [
        "| | one; two | three |",
        "|---|:-:|:-:|",
        "| B | x | z |",
        "| all others | x | y |",
    ]
