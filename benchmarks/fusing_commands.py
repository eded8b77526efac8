"""Whole commands that fuse, ours beside mergekit's: each a process of its own, with its imports."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT
from benchmarks.turns import Run, in_turns, ratio

__all__ = ["beside_mergekit", "table"]


@dataclass(frozen=True)
class Command:
    """A method in both.

    Attributes:
        ours: Options of ours.
        theirs: Configuration of theirs, without models.
        models: How many.
        based: Whether theirs wants the first as its base.
        goal: How many times as fast ours is to be.
    """

    ours: str
    theirs: dict[str, Any]
    models: int = 4
    based: bool = True
    goal: float | None = None


STARTING = "help, nothing fused"
COMMANDS = {
    "average": Command(
        "--method average", {"merge_method": "linear", "parameters": {"weight": 1.0}}, based=False, goal=5
    ),
    "slerp": Command("--method slerp --t 0.3", {"merge_method": "slerp", "parameters": {"t": 0.3}}, 2),
    "task arithmetic": Command(
        "--method task_arithmetic --scale 0.4",
        {"merge_method": "task_arithmetic", "parameters": {"weight": 1.0, "lambda": 0.4}},
    ),
    "DARE": Command(
        "--method dare --density 0.5",
        {"merge_method": "dare_linear", "parameters": {"weight": 1.0, "density": 0.5, "rescale": True}},
    ),
    "TIES": Command(
        "--method ties --density 0.5",
        {"merge_method": "ties", "parameters": {"weight": 1.0, "density": 0.5, "normalize": True}},
        goal=10,
    ),
}


def beside_mergekit(python: str, models: Sequence[Path], folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Return a row of figures for each method, and one for what both need to start.

    Args:
        python: Of the environment that has mergekit.
        models: Files of safetensors.
        folder: For what is written.
        rounds: Turns of each.
    """
    ours = [sys.executable, "-m", "lightning_tricks.cli", "fuse"]
    theirs = [str(Path(python).with_name("mergekit-pytorch"))]
    runs: dict[str, Run] = {}
    for name, command in COMMANDS.items():
        paths = [str(path) for path in models[: command.models]]
        config = models[0].with_name(f"{name.replace(' ', '_')}.yml")
        base = {"base_model": paths[0]} if command.based else {}
        listed = [{"model": path} for path in paths[len(base) :]]
        config.write_text(json.dumps({**command.theirs, **base, "models": listed}))
        output = str(folder / "fused.safetensors")
        runs[f"ours {name}"] = partial(_run, [*ours, *paths, *command.ours.split(), "-o", output])
        runs[f"mergekit {name}"] = partial(_run, [*theirs, str(config), str(folder / "merged"), "--quiet"])
    runs[f"ours {STARTING}"] = partial(_run, [*ours, "--help"])
    runs[f"mergekit {STARTING}"] = partial(_run, [*theirs, "--help"])
    times = in_turns(runs, folder, rounds)
    return [_row(name, times[f"ours {name}"], times[f"mergekit {name}"]) for name in (*COMMANDS, STARTING)]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def _row(name: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    goal = COMMANDS[name].goal if name in COMMANDS else None
    seconds = {"seconds": statistics.median(ours), "mergekit": statistics.median(theirs)}
    return {"command": name, **seconds, **ratio(theirs, ours), "goal": goal}


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table; none without rows."""
    lines = [
        "",
        "| whole command, .safetensors | s | mergekit, s | times as fast (middle half of rounds) | aim |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        spread = f"{row['ratio']:.1f} ({row['ratio_low']:.1f} to {row['ratio_high']:.1f})"
        goal = "" if row["goal"] is None else f"{row['goal']:g}"
        lines.append(
            f"| {row['command']} | {row['seconds']:.2f} | {row['mergekit']:.2f} | {spread} | {goal} |"
        )
    return lines if rows else []
