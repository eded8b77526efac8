"""A process that works on a study: ``python -m tests.study.worker STORAGE FOLDER PIECES SECONDS``.

It says in FOLDER that it is ready, begins when ``go`` is there, and writes the pieces it took in a file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from lightning_tricks.study.queue import Queue
from lightning_tricks.study.storage import open_storage, quiet_optuna

ROOT = Path(__file__).parents[2]


def started(where: str, folder: Path, *, pieces: int, seconds: float = 0.0) -> subprocess.Popen[str]:
    """Start a worker; it waits for ``go``."""
    command = [sys.executable, "-m", "tests.study.worker", where, str(folder), str(pieces), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def go(folder: Path, workers: int) -> None:
    """Let ``workers`` begin at one moment, when all of them are ready."""
    while len(list(folder.glob("ready-*"))) < workers:
        time.sleep(0.01)
    (folder / "go").touch()


def taken(folder: Path) -> list[list[str]]:
    """Return for each worker what it took."""
    return [path.read_text().split() for path in folder.glob("taken-*")]


def main() -> None:
    where, folder, pieces, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    keys = [f"piece {number}" for number in range(pieces)]
    with quiet_optuna():  # which imports it, so that none is ready long before the others are
        open_storage(folder / "another.journal")
        (folder / f"ready-{os.getpid()}").touch()
        while not (folder / "go").exists():
            time.sleep(0.0005)
        queue = Queue(open_storage(where), "shared")
        queue.enter({"pieces": pieces}, {key: {} for key in keys})
        while (claim := queue.claim(keys)) is not None:
            with claim, (folder / f"taken-{os.getpid()}").open("a") as file:
                print(claim.key.replace(" ", "-"), file=file, flush=True)
                time.sleep(seconds)
                claim.done(1.0, {})
        queue.close()


if __name__ == "__main__":
    main()
