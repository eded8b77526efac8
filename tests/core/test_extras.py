"""A missing package is named as pip knows it."""

from __future__ import annotations

import pytest

from lightning_tricks.core.extras import extra


def test_scikit_learn_is_named_as_it_is_installed() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match=r"^scikit-learn must be installed: pip.*\[demo\]"),
        extra("demo"),
    ):
        raise ModuleNotFoundError(name="sklearn.datasets")
