"""Whole commands that fuse, ours beside mergekit's: each a process of its own, with its imports.

All run in turns, on the same files of safetensors, which lie in the page cache; the output goes to memory.
The quotient of the times is taken within a round, and its median over rounds reported with the middle half.

    python -m benchmarks.fusing_commands --mergekit /path/to/mergekit/bin/python --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.fusing import scratch, write_models
from benchmarks.record import ROOT, record
from benchmarks.turns import Run, in_turns, ratio


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


def beside_mergekit(
    python: str, models: Sequence[Path], folder: Path, rounds: int, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row of figures for each method, and one for what both need to start.

    Args:
        python: Of the environment that has mergekit.
        models: Files of safetensors.
        folder: For what is written.
        rounds: Turns of each.
        names: Of the methods.
    """
    runs: dict[str, Run] = {}
    for name in (*names, STARTING):
        ours, theirs = pair(name, python, models, folder)
        runs[f"ours {name}"], runs[f"mergekit {name}"] = partial(_run, ours), partial(_run, theirs)
    times = in_turns(runs, folder, rounds, warmup=False)
    return [_row(name, times[f"ours {name}"], times[f"mergekit {name}"]) for name in (*names, STARTING)]


def pair(name: str, python: str, models: Sequence[Path], folder: Path) -> tuple[list[str], list[str]]:
    """Return the command lines of a method, ours and mergekit's, whose settings are written down."""
    ours = [sys.executable, "-m", "lightning_tricks.cli", "fuse"]
    theirs = [str(Path(python).with_name("mergekit-pytorch"))]
    if name == STARTING:
        return [*ours, "--help"], [*theirs, "--help"]
    command = COMMANDS[name]
    paths = [str(path) for path in models[: command.models]]
    config = models[0].with_name(f"{name.replace(' ', '_')}.yml")
    base = {"base_model": paths[0]} if command.based else {}
    listed = [{"model": path} for path in paths[len(base) :]]
    config.write_text(json.dumps({**command.theirs, **base, "models": listed}))
    ours += [*paths, *command.ours.split(), "-o", str(folder / "fused.safetensors")]
    return ours, [*theirs, str(config), str(folder / "merged"), "--quiet"]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def _row(name: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    goal = COMMANDS[name].goal if name in COMMANDS else None
    seconds = {"seconds": statistics.median(ours), "mergekit": statistics.median(theirs)}
    return {"command": name, **seconds, **ratio(theirs, ours), "goal": goal}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| whole command, .safetensors | s | mergekit, s | times as fast (middle half of rounds) | aim |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        spread = f"{row['ratio']:.1f} ({row['ratio_low']:.1f} to {row['ratio_high']:.1f})"
        goal = "" if row["goal"] is None else f"{row['goal']:g}"
        lines.append(
            f"| {row['command']} | {row['seconds']:.2f} | {row['mergekit']:.2f} | {spread} | {goal} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, write the figures as JSON, and put the table into its document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mergekit", required=True, help="Python of an environment that has mergekit")
    parser.add_argument("--megabytes", type=int, default=1200, help="of each model (default: 1200)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every command (default: 3)")
    parser.add_argument("--methods", nargs="+", choices=COMMANDS, default=[*COMMANDS], help="default: all")
    parser.add_argument("--output", default="/dev/shm", help="for what is written (default: /dev/shm)")
    chosen = parser.parse_args()
    with scratch(None) as folder, scratch(chosen.output) as target:
        _, safe = write_models(Path(folder), chosen.megabytes * 10**6)
        rows = beside_mergekit(chosen.mergekit, safe, Path(target), chosen.rounds, chosen.methods)
    about = {"rounds": chosen.rounds, "megabytes": chosen.megabytes}
    record("fusing_commands", {**about, "commands": rows}, table(rows))


if __name__ == "__main__":
    main()
