"""Running a module of the tests in several processes that know of one another, as torchrun would.

Each is forked from a process that has imported what all of them need, which takes longer than most of them
run. Each rank has an origin of its own, so that ranks differ in the order of sets, as they do elsewhere.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
SHARED = (
    "lightning_tricks.public",
    "tests.contract.cases",
    "tests.distributed.worlds",
    "torch.distributed.checkpoint.format_utils",
)

origins: dict[int, subprocess.Popen[str]] = {}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def launch(module: str, *arguments: str, processes: int = 2, timeout: float = 300.0) -> None:
    """Run ``python -m module arguments`` in ``processes`` processes and wait for them.

    Raises:
        RuntimeError: If one fails, or they take longer than ``timeout`` seconds; with what they wrote.
    """
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",  # tells Lightning that it need not start processes itself
    }
    ranks = range(processes)
    with TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in ranks]
        try:
            for rank, output in zip(ranks, outputs, strict=True):
                own = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                ask(rank, [module, *arguments], own, str(output), timeout)
            codes = [answer(rank) for rank in ranks]
        except BaseException:
            end_origins()
            raise
        if any(codes):
            told = "\n".join(f"--- process {rank}\n{outputs[rank].read_text()[-6000:]}" for rank in ranks)
            ending = f"did not end within {timeout:g} seconds" if -signal.SIGALRM in codes else "failed"
            raise RuntimeError(f"{module} {' '.join(arguments)} {ending}:\n{told}")


def ask(rank: int, *request: object) -> None:
    """Let the origin of ``rank`` fork and call :func:`run`."""
    if rank not in origins:
        command = [sys.executable, "-m", __spec__.name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # In a session of its own, it can be ended together with its forks.
        origins[rank] = subprocess.Popen(command, cwd=ROOT, start_new_session=True, text=True, **pipes)
    print(json.dumps(request), file=origins[rank].stdin, flush=True)


def answer(rank: int) -> int:
    """Wait for the fork of ``rank`` and return its exit code."""
    pipe = origins[rank].stdout
    assert pipe is not None
    return int(pipe.readline())


@atexit.register
def end_origins() -> None:
    """End all origins and their forks."""
    while origins:
        with origins.popitem()[1] as origin:
            os.killpg(origin.pid, signal.SIGKILL)


def main() -> None:
    """Be an origin: fork for each line that comes in, and answer how that ended."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        gc.disable()  # what is imported stays, and no collection need look through it
        for name in SHARED:
            import_module(name)
        gc.freeze()
        gc.enable()
        for line in sys.stdin:
            child = os.fork()
            if child == 0:
                run(*json.loads(line))
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def run(words: list[str], environment: dict[str, str], output: str, timeout: float) -> None:
    """Run a module with arguments, as it would run by itself, and end this process."""
    import numpy as np
    import torch

    os.environ.clear()
    os.environ.update(environment)
    written = os.open(output, os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(written, stream.fileno())
    signal.setitimer(signal.ITIMER_REAL, timeout)  # which ends the process, whatever it waits for
    np.random.seed()  # as a new process; ``random`` does that itself
    torch.set_num_threads(1)
    warnings.filterwarnings("error", category=UserWarning, module="lightning_tricks")
    sys.argv = words[:]
    code = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # torch's threads may abort a process that ends in the usual way


if __name__ == "__main__":
    main()
