"""``lightning-tricks fuse`` with options that it does not have, or that another method has."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_tricks.cli import main


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--method interpolate --alhpa 1", "did you mean --alpha?"),
        ("--weigths [0.5,0.5]", "did you mean --weights?"),
        ("--methd slerp", "did you mean --method?"),
        ("--xyz 1", "unrecognized arguments: --xyz 1; see lightning-tricks fuse --help"),
        (
            "--method slerp --alpha 0.3",
            "--alpha must be left out with slerp, which has --t; it is an option of interpolate",
        ),
        (
            "--density=0.5",
            "--density must be left out with average, which has --weights; it is an option of bread",
        ),
        ("--method median --t 0.3", "--t must be left out with median, which has no options"),
    ],
)
def test_a_wrong_option_is_told_with_the_right_one(capsys: Any, given: str, message: str) -> None:
    assert main(["fuse", "a.ckpt", "b.ckpt", "-o", "x.ckpt", *given.split()]) == 2
    assert message in capsys.readouterr().err
