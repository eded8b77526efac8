"""Pieces of work: each is done once, by whoever takes it, and again if that process was lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from threading import Event, Thread

import pytest

from lightning_tricks.study import alive
from lightning_tricks.study import queue as module
from lightning_tricks.study.queue import Queue, attempts
from lightning_tricks.study.storage import _JournalLock, open_storage
from tests.study.worker import ROOT, go, started, taken

KEYS = ("a", "b")


def queue(path, **options):
    opened = Queue(open_storage(path), "study", **{"patience_seconds": 0.1, **options})
    opened.enter({"epochs": 3}, {key: {"letter": key} for key in KEYS})
    return opened


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a new folder" / "study.journal"


def states(opened):
    return {key: trial.state.name for key, trial in opened.pieces().items()}


def test_pieces_are_taken_in_order_and_once(path):
    first, second = queue(path), queue(path)
    with first.claim(KEYS) as one, second.claim(KEYS) as other:
        assert (one.key, other.key) == KEYS
        assert first.claim(KEYS) is second.claim(KEYS) is None
        assert states(second) == {"a": "RUNNING", "b": "RUNNING"}
        assert one.done(0.5, {"steps": 7})
        assert other.died("RuntimeError: no more")
    again = queue(path)
    assert states(again) == {"a": "COMPLETE", "b": "FAIL"}
    assert again.claim(KEYS) is None  # that it died is recorded, and not tried again
    done, dead = again.pieces().values()
    assert (done.value, done.user_attrs["result"], done.user_attrs["letter"]) == (0.5, {"steps": 7}, "a")
    assert dead.user_attrs["error"] == "RuntimeError: no more"


@pytest.mark.timeout(60)
def test_two_processes_that_start_together_never_take_the_same(tmp_path):
    workers = [started(str(tmp_path / "shared.journal"), tmp_path, pieces=16, seconds=0.02) for _ in range(2)]
    go(tmp_path, 2)
    assert [worker.communicate()[1] for worker in workers] == ["", ""]
    one, other = taken(tmp_path)
    assert Counter(one + other) == Counter(f"piece-{number}" for number in range(16))
    assert min(len(one), len(other)) > 0
    found = attempts(queue_of(tmp_path / "shared.journal", pieces=16).trials())
    assert [len(chain) for chain in found.values()] == [1] * 16


def queue_of(path, *, pieces):
    opened = Queue(open_storage(path), "shared")
    opened.enter({"pieces": pieces}, {})
    return opened


@pytest.mark.timeout(60)
def test_a_piece_whose_process_was_killed_is_done_again_at_once(tmp_path):
    worker = started(str(tmp_path / "shared.journal"), tmp_path, pieces=2, seconds=60)
    go(tmp_path, 1)
    while not taken(tmp_path) or not taken(tmp_path)[0]:
        time.sleep(0.01)
    opened = queue_of(tmp_path / "shared.journal", pieces=2)
    keys = ["piece 0", "piece 1"]
    held = opened.claim(keys)
    assert held is not None
    assert held.key == "piece 1"  # the other one is at work
    worker.send_signal(signal.SIGKILL)
    while (claim := opened.claim(keys)) is None:  # not waited for: its parent has not asked after it either
        time.sleep(0.01)
    with held, claim:
        assert claim.key == "piece 0"
        assert claim.done(2.0, {})
        held.done(1.0, {})
    worker.communicate()
    assert states(opened) == {"piece 0": "COMPLETE", "piece 1": "COMPLETE"}
    assert [trial.state.name for trial in attempts(opened.trials())["piece 0"]] == ["FAIL", "COMPLETE"]


def test_of_another_machine_the_beat_decides(path, monkeypatch):
    here = queue(path, grace_seconds=0.05)
    monkeypatch.setattr(alive, "_space", lambda: "elsewhere")
    remote = queue(path).claim(KEYS)
    monkeypatch.undo()
    assert here.claim(["a"]) is None  # first seen now
    time.sleep(0.06)
    remote._beat._beat(1)
    assert here.claim(["a"]) is None
    time.sleep(0.06)
    with here.claim(["a"]) as taken_over:
        assert not remote.done(9.0, {})  # it was only slow, but its piece is another's now
        assert taken_over.done(1.0, {})
    assert here.pieces()["a"].value == 1.0


def test_a_beat_is_heard_while_the_block_lasts():
    heard = []

    def beat(count):
        heard.append(count)
        raise ConnectionError  # one beat that does not arrive is not the last

    with alive.Beat(beat, every_seconds=0.005):
        while len(heard) < 3:
            time.sleep(0.001)
    assert heard[:3] == [1, 2, 3]
    count = len(heard)
    time.sleep(0.02)
    assert len(heard) == count


def test_a_piece_that_is_left_is_given_back_however_often(path):
    opened = queue(path)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt), opened.claim(["a"]):
            raise KeyboardInterrupt
    assert states(opened)["a"] == "FAIL"
    with opened.claim(["a"]) as claim:
        assert claim.done(1.0, {})
    assert opened.pieces()["a"].user_attrs["letter"] == "a"


def test_work_that_kills_whoever_takes_it_is_given_up(path, monkeypatch):
    opened = queue(path)
    monkeypatch.setattr(alive.Watch, "is_lost", lambda *_: True)
    for _ in range(3):
        assert opened.claim(["a"]) is not None
    assert opened.claim(["a"]) is None
    assert opened.pieces()["a"].user_attrs["error"] == "its process was lost 3 times"
    assert opened.claim(["a"]) is None


def test_killed_between_failing_a_trial_and_putting_the_next_it_goes_on(path, monkeypatch):
    opened = queue(path)
    opened.claim(["a"])
    monkeypatch.setattr(alive, "_started", lambda pid: None)
    monkeypatch.setattr(Queue, "_put", killed)
    with pytest.raises(InterruptedError):
        opened.claim(["a"])
    monkeypatch.undo()
    assert queue(path).claim(["a"]) is not None


def test_killed_as_it_takes_a_piece_it_is_lost_at_once(path, monkeypatch):
    opened = queue(path)
    monkeypatch.setattr(module, "Claim", killed)
    with pytest.raises(InterruptedError):
        opened.claim(["a"])
    assert states(opened)["a"] == "RUNNING"
    monkeypatch.undo()
    assert opened.claim(["a"]) is None  # who took it still runs
    monkeypatch.setattr(alive, "_started", lambda pid: None)
    assert opened.claim(["a"]) is not None
    assert set(opened.pieces()["a"].user_attrs) - {"key", "attempt", "letter", "process"} == {
        f"taker {os.getpid()} None"
    }


def killed(*_):
    raise InterruptedError


@pytest.mark.parametrize("after", [0, 1])
def test_a_maker_that_was_killed_is_replaced(after, path, monkeypatch):
    put = Queue._put

    def once(self, key, *rest):
        return killed() if key == KEYS[after] else put(self, key, *rest)

    monkeypatch.setattr(Queue, "_put", once)
    with pytest.raises(InterruptedError):
        queue(path)
    monkeypatch.undo()
    opened = queue(path)
    assert states(opened) == {"a": "WAITING", "b": "WAITING"}
    assert len(opened.trials()) == 2


def test_of_two_trials_for_one_piece_the_earlier_counts(path):
    first, second = queue(path), queue(path)
    for each in (first, second):  # as when both saw that it was missing
        each._put("c", 0, {})
    assert [trial.state.name for trial in first.trials()] == ["WAITING", "WAITING", "WAITING", "PRUNED"]
    assert first.pieces()["c"].number == second.pieces()["c"].number == 2


def test_other_settings_are_refused_by_name(path):
    queue(path)
    other = Queue(open_storage(path), "study")
    with pytest.raises(ValueError, match="epochs must be 3, as the study 'study' was begun, got 4"):
        other.enter({"epochs": 4}, {})
    with pytest.raises(ValueError, match="epochs must be 3, .* got 'not given'"):
        other.enter({}, {})
    with pytest.raises(ValueError, match="lr must be 'not given'"):
        other.enter({"epochs": 3, "lr": 1}, {})
    other.enter({"epochs": 3}, {"c": {}})  # more work is none of them
    assert list(other.pieces()) == ["a", "b", "c"]


def test_a_lock_of_a_process_that_was_killed_holds_up_nobody(path):
    opened = queue(path)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    begin = time.monotonic()
    assert opened.claim(["a"]) is not None
    assert time.monotonic() - begin < 5


def test_only_one_holds_the_lock(path):
    queue(path)
    one, other, held = _JournalLock(path), _JournalLock(path), Event()
    one.acquire()
    waiting = Thread(target=lambda: other.acquire() and held.set())
    waiting.start()
    assert not held.wait(0.05)
    one.release()
    assert held.wait(5)
    other.release()
    waiting.join()


KILLED = """
import os, signal, sys
from pathlib import Path
from lightning_tricks.study.storage import _JournalLock
_JournalLock(Path(sys.argv[1])).acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_line_that_was_never_finished_is_taken_away(path):
    with queue(path).claim(["a"]) as claim:
        claim.done(1.0, {})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":5,"worker')
    opened = queue(path)
    assert states(opened) == {"a": "COMPLETE", "b": "WAITING"}
    assert opened.claim(["b"]) is not None
    for line in path.read_text().splitlines():
        json.loads(line)
    assert path.read_bytes().startswith(whole)


def test_a_process_is_known_by_its_number_and_its_start():
    said = alive.this_process()
    watch = alive.Watch(grace_seconds=0.0)
    assert said["pid"] == os.getpid()
    assert not watch.is_lost(0, said, None)
    assert watch.is_lost(0, {**said, "started": said["started"] - 1}, None)  # its number is another's now
    assert watch.is_lost(0, {**said, "pid": 2**22 + 1}, None)
