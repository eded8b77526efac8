"""Running a module of the tests in several processes that know of one another, as torchrun would."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
        "OMP_NUM_THREADS": "1",
    }
    strict = ["-W", "error::UserWarning:lightning_tricks"]
    command = [sys.executable, *strict, "-m", __spec__.name, module, *arguments]
    running = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    outputs: list[str] = []
    try:
        outputs += (process.communicate(timeout=timeout)[0] for process in running)
    except subprocess.TimeoutExpired:
        outputs.append(f"no end within {timeout:g} seconds")
    finally:
        for process in running:
            process.kill()
    if any(process.wait() for process in running) or len(outputs) < processes:
        told = "\n".join(f"--- process {rank}\n{output[-6000:]}" for rank, output in enumerate(outputs))
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{told}")


def main() -> None:
    """Run the module that the command line names, as it would run by itself."""
    del sys.argv[0]
    code = 0
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # torch's threads may abort a process that ends in the usual way


if __name__ == "__main__":
    main()
