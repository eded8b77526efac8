"""How a question is put to several, and what may come out."""

from __future__ import annotations

import io
import json
import linecache
import logging
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch

__all__ = [
    "Case",
    "StoppedError",
    "Verdict",
    "answer",
    "judged",
    "of_error",
    "of_traceback",
    "verdict_of",
    "version_of",
]

Outcome = Literal["right", "refused", "fails", "wrong", "warned", "known"]

# What is said of runs like these whether they are right or not.
_OF_ALL = "|".join(
    [
        "does not have many workers",
        "smaller than the logging interval",
        "resuming from a checkpoint that ended",
        "treespec, LeafSpec",
        "Checkpoint directory",
        "tensorboardX",
        "have no `val_dataloader`",
        "is multi-threaded",
        "sync_dist=True",
        "modules in eval mode",
        "torch.jit",
        "metric specified for FTS",
        "depends upon an FTSEarlyStopping",
        "params to be frozen already exist",
    ]
)


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        outcome: ``"right"``; ``"refused"``, an error that the one asked raises by intention; ``"fails"``, one
            that comes upon it; ``"wrong"`` without a word; ``"warned"``, wrong after a warning; ``"known"``,
            wrong, and its documentation says so.
        seen: The evidence, in a line.
    """

    outcome: Outcome
    seen: str


@dataclass(frozen=True)
class Case:
    """One that is asked.

    Attributes:
        who: As the table names it.
        ask: Puts the question and judges what comes out; what it raises is a verdict, too.
        peer: The distribution that it is from; ``None`` for this one.
        known: Whether its documentation says that it does not do this.
        needs: A distribution without which it cannot be asked.
    """

    who: str
    ask: Callable[[], Verdict]
    peer: str | None = None
    known: bool = False
    needs: str | None = None


class StoppedError(Exception):
    """Ends a case with a verdict."""

    def __init__(self, verdict: Verdict) -> None:
        """Take the verdict."""
        self.verdict = verdict


def judged(right: bool, seen: str) -> Verdict:
    """Return whether it is right, with the evidence."""
    return Verdict("right" if right else "wrong", seen)


@cache
def version_of(peer: str) -> str | None:
    """Return the version of a distribution, that of mergekit where ``MERGEKIT_PYTHON`` is, or ``None``."""
    python = os.environ.get("MERGEKIT_PYTHON")
    if peer == "mergekit" and python:
        asked = [python, "-c", "from importlib.metadata import version; print(version('mergekit'))"]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    try:
        return version(peer)
    except PackageNotFoundError:
        return None


def verdict_of(case: Case) -> Verdict | None:
    """Return what comes out of ``case``; ``None`` if its distribution is not installed."""
    if any(name and version_of(name) is None for name in (case.peer, case.needs)):
        return None
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    # Some write files where they are, and print tables.
    with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("always")
        try:
            with chdir(folder), redirect_stdout(io.StringIO()):
                verdict = case.ask()
        except StoppedError as stopped:
            return stopped.verdict
        except Exception as error:  # whatever a peer raises is its answer
            last = traceback.extract_tb(error.__traceback__)[-1]
            line = linecache.getline(last.filename, last.lineno or 0)
            told = str(error).replace(f"{folder}/", "")
            return of_error(line, f"{type(error).__name__}: {told}")
    if verdict.outcome == "wrong" and case.known:
        return replace(verdict, outcome="known")
    told = [str(one.message) for one in caught if not re.search(_OF_ALL, str(one.message))]
    if verdict.outcome == "wrong" and told:
        return replace(verdict, outcome="warned", seen=f"{verdict.seen}; said {_first_words(told[-1])!r}")
    return verdict


def of_error(line: str, told: str) -> Verdict:
    """Return the verdict on an error, which is intended if the ``line`` that it comes from says so."""
    intended = line.strip().startswith(("raise ", "assert "))
    return Verdict("refused" if intended else "fails", _first_words(told))


def of_traceback(text: str) -> Verdict:
    """Return the verdict on the error of another process, from what it printed."""
    lines = [line for line in text.splitlines() if line.strip(" ^~")]
    last = max(at for at, line in enumerate(lines) if line.startswith("  File "))
    told = next(at for at in range(last + 1, len(lines)) if not lines[at].startswith(" "))
    return of_error(lines[last + 1], " ".join(lines[told:]))


def _first_words(text: str, length: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3].rsplit(" ", 1)[0] + " ..."


def answer(question: str, cases: Sequence[Case]) -> None:
    """Put ``question`` to each of ``cases`` and print what comes out; with ``--json`` for a program."""
    torch.set_num_threads(1)
    found = {case.who: verdict_of(case) for case in cases}
    if "--json" in sys.argv:
        print(json.dumps({who: None if one is None else asdict(one) for who, one in found.items()}))
        return
    print(question)
    for who, verdict in found.items():
        print(f"  {who}: " + ("not installed" if verdict is None else f"{verdict.outcome}: {verdict.seen}"))
