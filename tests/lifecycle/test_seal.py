"""The seal on what a checkpoint holds of a technique."""

from __future__ import annotations

import pytest

from lightning_tricks.lifecycle.seal import sealed, unsealed


def test_a_name_that_is_damaged_in_entry_and_seal_alike_is_found() -> None:
    # A file holds each text once, so a flipped bit changes all places of it.
    entry = sealed({"position": 3, "updates": 3})
    assert unsealed({"callbacks": {"A": entry}}, "A") == {"position": 3, "updates": 3}
    seal = {name.replace("position", "positiom"): value for name, value in entry["seal"].items()}
    wrong = {"positiom": 3, "updates": 3, "seal": seal}
    with pytest.raises(ValueError, match="state of A must be as it was saved.*damaged under 'positiom'"):
        unsealed({"callbacks": {"A": wrong}}, "A")
