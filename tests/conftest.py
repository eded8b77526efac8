"""What every test shares."""

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import lightning.pytorch  # noqa: F401  # sets its own level when it is imported
import pytest

from tests.matrix import Matrix
from tests.toys import seed
from tests.wandb_server import KEY, WandbServer, wandb_server

# Lightning's tips and device tables would bury what a failing test has to say.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--short", action="store_true", help="leave out slow tests, and most cases of sampled ones"
    )
    parser.addoption("--matrix", action="store_true", help="write technique x regime into the README")
    parser.addoption("--points", type=int, default=5, help="how many runs to break off (default: 5)")
    parser.addoption("--seed", type=int, default=0, help="which runs to break off (default: 0)")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Matrix(write=config.getoption("--matrix")))
    if config.getoption("--short"):
        os.environ.setdefault("HYPOTHESIS_PROFILE", "short")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--short"):
        for item in items:
            if item.get_closest_marker("slow") or not drawn(item):
                item.add_marker(pytest.mark.skip("left to `make test-all`"))


def drawn(item: pytest.Item) -> bool:
    """Return whether a test is one of those that are left of a sampled one, the same in each run."""
    return all(crc32(item.name.encode()) % mark.args[0] == 0 for mark in item.iter_markers("sampled"))


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported stays, and no collection need look through it


@pytest.fixture(autouse=True)
def _random_state() -> Iterator[None]:
    """Start every test from the same random state, so that one cannot depend on another."""
    seed(0)
    yield


@pytest.fixture
def wandb_is_offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have W&B write to folders, whatever this process asked of it before."""
    import wandb

    wandb.teardown()  # else it would know of the environment what it read for an earlier test
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


@pytest.fixture
def wandb_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    """Have W&B talk to a server on loopback; give that."""
    import wandb

    wandb.teardown()
    for name in ("WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "own"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # what it tells its makers, which takes seconds
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        wandb.teardown()
        assert server.unknown == []
