"""Tables are text, wherever they are made."""

from __future__ import annotations

import pytest

from lightning_tricks.lifecycle.table import text_table


def test_a_table_is_text_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # There rich would show it, and write nothing.
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *_: None)
    assert text_table("One", {"name": "left"}, [("a",)]).splitlines() == [
        "One",
        "| name |",
        "|------|",
        "| a    |",
    ]
