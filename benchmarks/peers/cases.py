"""How a question is put to several, and what may come out."""

from __future__ import annotations

import io
import json
import linecache
import logging
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stdout
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from typing import Literal

import torch

__all__ = ["Case", "Verdict", "answer", "judged", "verdict_of"]

Outcome = Literal["right", "refused", "fails", "wrong", "warned", "absent"]

# What Lightning says of small runs like these, whoever takes part in them.
_OF_SMALL_RUNS = (
    "does not have many workers|smaller than the logging interval|resuming from a checkpoint that ended"
    "|treespec, LeafSpec|Checkpoint directory|tensorboardX|has no `val_dataloader"
    "|have no `val_dataloader`|is multi-threaded|sync_dist=True|modules in eval mode|torch.jit.script|metric specified for FTS|depends upon an FTSEarlyStopping"
)


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        outcome: ``"right"``; ``"refused"``, an error that the one asked raises by intention; ``"fails"``, one
            that comes upon it; ``"wrong"`` without a word; ``"warned"``, wrong after a warning; ``"absent"``,
            it has no such thing.
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
    """

    who: str
    ask: Callable[[], Verdict]
    peer: str | None = None


def judged(right: bool, seen: str) -> Verdict:
    """Return whether it is right, with the evidence."""
    return Verdict("right" if right else "wrong", seen)


def verdict_of(case: Case) -> Verdict | None:
    """Return what comes out of ``case``; ``None`` if its distribution is not installed."""
    try:
        distribution(case.peer or "lightning_tricks")
    except PackageNotFoundError:
        return None
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    # Some write files where they are, and print tables.
    with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("always")
        try:
            with chdir(folder), redirect_stdout(io.StringIO()):
                verdict = case.ask()
        except Exception as error:
            return _of_error(error)
    told = [str(one.message) for one in caught if not re.search(_OF_SMALL_RUNS, str(one.message))]
    if verdict.outcome == "wrong" and told:
        return replace(verdict, outcome="warned", seen=f"{verdict.seen}; said {_first_words(told[-1])!r}")
    return verdict


def _of_error(error: Exception) -> Verdict:
    """An error is intended if the line that it comes from raises or asserts."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    intended = line.startswith(("raise ", "assert ")) and "/torch/" not in last.filename
    return Verdict("refused" if intended else "fails", f"{type(error).__name__}: {_first_words(str(error))}")


def _first_words(text: str, length: int = 150) -> str:
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
