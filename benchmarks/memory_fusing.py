"""The memory that fusing four models into one takes at most, ours and its peers', as whole commands.

That is the anonymous memory of the process, Python and torch included (``RssAnon``, looked at every 2 ms):
files that are only mapped do not count.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.fusing import LOADED, anonymous, scratch, write_models
from benchmarks.fusing_commands import STARTING, pair
from benchmarks.record import ROOT

__all__ = ["fusions"]

OURS = "`lightning-tricks fuse`"
METHODS = ("average", "TIES", STARTING)
BY_HAND = "import sys; from pathlib import Path; from benchmarks.fusing import loaded; \
loaded([Path(path) for path in sys.argv[2:]], Path(sys.argv[1]))"

Commands = dict[tuple[str, str], list[str]]
"""What is done and with what, and its command line."""


def commands(checkpoints: list[Path], safe: list[Path], folder: Path, mergekit: str | None) -> Commands:
    """Return those that there are; without the Python of an environment that has it, none of mergekit's."""
    ours, _ = pair("average", sys.executable, checkpoints, folder)
    ours[-1] = str(folder / "fused.ckpt")
    by_hand = [sys.executable, "-c", BY_HAND, str(folder / "fused.ckpt"), *map(str, checkpoints)]
    found = {("average, .ckpt", OURS): ours, ("average, .ckpt", LOADED): by_hand}
    for name in METHODS:
        what = name if name == STARTING else f"{name}, .safetensors"
        found[what, OURS], theirs = pair(name, mergekit or sys.executable, safe, folder)
        if mergekit:
            found[what, "mergekit"] = theirs
    if not mergekit:
        print("mergekit is left out: give --mergekit the Python of an environment that has it")
    return found


def most(command: Sequence[str]) -> int:
    """Return the most anonymous memory that the process of ``command`` had at any time, in bytes.

    Raises:
        CalledProcessError: If it fails.
    """
    highest = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT) as process:
        while process.poll() is None:
            highest = max(highest, anonymous(process.pid))
            time.sleep(0.002)
        if process.returncode:
            assert process.stderr is not None
            raise subprocess.CalledProcessError(process.returncode, command, stderr=process.stderr.read())
    return highest


def fusions(total: int, runs: int, mergekit: str | None) -> list[dict[str, Any]]:
    """Return a row of figures for each command, in sizes of one model.

    Args:
        total: Bytes of each model.
        runs: Processes of each command.
        mergekit: The Python of an environment that has mergekit.
    """
    with scratch(None) as models, scratch(None) as target:
        checkpoints, safe = write_models(Path(models), total)
        found = commands(checkpoints, safe, Path(target), mergekit)
        sizes: dict[tuple[str, str], list[float]] = {key: [] for key in found}
        for _ in range(runs):
            for key in track(found, "fusing"):
                for path in Path(target).iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                sizes[key].append(most(found[key]) / total)
    return [
        {"what": what, "who": who, "sets": statistics.median(each), "low": min(each), "high": max(each)}
        for (what, who), each in sizes.items()
    ]
