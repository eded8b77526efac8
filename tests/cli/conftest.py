"""Tests of the command line know no account of whoever runs them."""

import os

import pytest


def stranger(folder):
    """Return the environment of somebody without an account, whoever runs the tests."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**known, "NETRC": str(folder / "netrc"), "WANDB_CONFIG_DIR": str(folder / "config")}


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    environment = stranger(tmp_path)
    # WANDB_SERVICE is where this process has its own service, and would be given back after that has ended.
    for name in os.environ.keys() - environment.keys() - {"WANDB_SERVICE"}:
        monkeypatch.delenv(name)
    for name in ("NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, environment[name])
