"""The same on the PostgreSQL that the variable ``POSTGRES_URL`` names; ``make test-postgres`` starts one."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections import Counter
from contextlib import closing, contextmanager

import pytest

from lightning_tricks.cli import main
from lightning_tricks.study.queue import Queue, attempts
from lightning_tricks.study.storage import open_storage, quiet_optuna
from tests.study.small import project
from tests.study.worker import go, started, taken

URL = os.environ.get("POSTGRES_URL")
pytestmark = [
    pytest.mark.skipif(URL is None, reason="POSTGRES_URL names no PostgreSQL"),
    pytest.mark.timeout(120),
]


@pytest.fixture
def database():
    """A new database, without a table."""
    import psycopg

    name = f"trials_{uuid.uuid4().hex}"
    with psycopg.connect(URL, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{URL.rpartition('/')[0]}/{name}"


@contextmanager
def joined(where, pieces):
    with quiet_optuna(), closing(Queue(open_storage(where), "shared")) as opened:
        opened.enter({"pieces": pieces}, {})
        yield opened


def test_two_processes_that_start_together_on_an_empty_database_never_take_the_same(database, tmp_path):
    workers = [started(database, tmp_path, pieces=40) for _ in range(2)]
    go(tmp_path, 2)
    assert [worker.communicate()[1] for worker in workers] == ["", ""]
    one, other = taken(tmp_path)
    assert Counter(one + other) == Counter(f"piece-{number}" for number in range(40))
    assert min(len(one), len(other)) > 3
    with joined(database, 40) as opened:
        chains = attempts(opened.trials())
    assert [(len(chain), chain[0].state.name) for chain in chains.values()] == [(1, "COMPLETE")] * 40


def test_a_piece_whose_process_was_killed_is_done_again(database, tmp_path):
    worker = started(database, tmp_path, pieces=1, seconds=60)
    go(tmp_path, 1)
    while not taken(tmp_path) or not taken(tmp_path)[0]:
        time.sleep(0.01)
    with joined(database, 1) as opened:
        assert opened.claim(["piece 0"]) is None
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        with opened.claim(["piece 0"]) as claim:
            assert claim.done(2.0, {"steps": 3})
        assert opened.pieces()["piece 0"].user_attrs["result"] == {"steps": 3}


def test_one_that_is_not_there_is_told_without_its_password():
    with pytest.raises(
        ConnectionError, match=r"storage postgresql://me:\*\*\*@127.0.0.1:1/none must be in reach"
    ):
        open_storage("postgresql://me:secret@127.0.0.1:1/none")


def test_two_workers_of_a_search_never_try_the_same(database, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    project(tmp_path, "searched_in_a_database")
    (tmp_path / "space.yaml").write_text("model.init_args.width: [2, 3, 4, 5]\ntrainer.max_epochs: [1, 2]")
    options = ["--space", "space.yaml", "--trials", "8", "--storage", database, "--workers", "2", "--json"]
    assert main(["search", "config.yaml", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len({tuple(each["settings"].items()) for each in found["trials"]}) == 8
    assert [each["number"] for each in found["trials"]] == list(range(8))
