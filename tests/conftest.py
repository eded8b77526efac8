"""What every test shares."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from xdist.scheduler import LoadGroupScheduling

from tests.matrix import Matrix
from tests.wandb_server import KEY, WandbServer, wandb_server

gc.disable()  # what is imported stays, and a fifth of the time of importing it went into looking through it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--short", action="store_true", help="leave out slow tests, and most cases of sampled ones"
    )
    parser.addoption("--matrix", action="store_true", help="write technique x regime into the README")
    parser.addoption("--points", type=int, default=5, help="how many runs to break off (default: 5)")
    parser.addoption("--seed", type=int, default=0, help="which runs to break off (default: 0)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--short"):
        os.environ.setdefault("HYPOTHESIS_PROFILE", "short")
    else:
        config.pluginmanager.register(Matrix(write=config.getoption("--matrix")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--short"):
        kept, left = [], []
        for item in items:
            (kept if drawn(item) else left).append(item)
        config.hook.pytest_deselected(items=left)
        items[:] = kept


def drawn(item: pytest.Item) -> bool:
    """Return whether a test is one of those that ``--short`` leaves, the same in each run."""
    import torch  # the process that hands out the tests need not

    if item.get_closest_marker("slow") or (item.get_closest_marker("gpu") and not torch.cuda.is_available()):
        return False
    return all(crc32(item.name.encode()) % mark.args[0] == 0 for mark in item.iter_markers("sampled"))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


class CasesTogether(LoadGroupScheduling):
    """Gives all cases of a test to one process: each by itself would take the square of their number."""

    def _split_scope(self, nodeid: str) -> str:
        return super()._split_scope(nodeid).partition("[")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> CasesTogether:
    return CasesTogether(config, log)


@pytest.fixture(autouse=True)
def _random_state() -> Iterator[None]:
    """Start every test from the same random state, so that one cannot depend on another."""
    from tests.toys import seed  # the process that hands out the tests need not import it

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
