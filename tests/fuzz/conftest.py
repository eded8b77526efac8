"""What is heard of a run here: no warning of others; those of the package itself are right and not asked."""

from types import SimpleNamespace

import pytest

from lightning_tricks.lifecycle import notice


@pytest.fixture(autouse=True)
def _own_warnings_are_not_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "warnings", SimpleNamespace(warn_explicit=lambda *_, **__: None))
