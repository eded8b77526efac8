"""What it costs to fuse checkpoints that lie in the page cache, against the least that system calls cost.

That is reading the inputs into one buffer and writing one output, without arithmetic and without knowing
where tensors begin. All variants run in one process, in turns and in a new random order every round; the
ratio to the system calls is taken within a round, and its median over rounds is reported with the middle
half. The output goes to memory (``/dev/shm``), the inputs lie in ``--folder``.

Methods are compared with the average of as many models in the same way, and the average of eight models with
that of two: four times the models are to cost no more than four times the time.
``benchmarks.fusing_commands`` times whole commands, beside mergekit's.

Memory is the anonymous memory of a process of its own (``RssAnon``, sampled every 2 ms) above that after the
imports, for several numbers of models, and for models four times as large.

    python -m benchmarks.fusing --megabytes 1200 --rounds 7
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import ROOT, record
from benchmarks.turns import Run, in_turns, ratio
from lightning_tricks import Average, Dare, Slerp, TaskArithmetic, Ties, fuse

MODELS = 4
CHUNK = 4 << 20
LIMIT, LIMIT_2 = "system calls", "system calls, two threads"
AVERAGE, WEIGHTED = "average, .ckpt", "weighted average, .ckpt"
SAFE = "average, .safetensors"
LOADED = "torch.load, mean, torch.save"
OF_TWO, OF_EIGHT = "average of two, .ckpt", "average of eight, .ckpt"
METHODS = {
    "slerp of two": (Slerp(0.3), OF_TWO),
    "task arithmetic": (TaskArithmetic(scale=0.4), AVERAGE),
    "DARE": (Dare(0.5), AVERAGE),
    "TIES": (Ties(0.5), AVERAGE),
}
"""Methods, and the average that they are compared with."""
BESIDE = {OF_EIGHT: OF_TWO, **{name: average for name, (_, average) in METHODS.items()}}
GOALS = {
    **dict.fromkeys((AVERAGE, WEIGHTED, SAFE), 1.3),
    **dict.fromkeys(("slerp of two", "task arithmetic", "DARE"), 2.0),
    OF_EIGHT: 4.0,
}
MEMORY_GOAL = 0.3


def mix(total: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of 300 tensors of ``total`` bytes: 12 blocks of a transformer, 30 convolutions."""
    width = max(16, round((total / 4 / 211.5) ** 0.5) // 2 * 2)
    half, shapes = width // 2, {}
    for block in range(12):
        for name, *shape in (
            *(("norm1.weight", width), ("norm1.bias", width), ("qkv.weight", 3 * width, width)),
            *(("qkv.bias", 3 * width), ("proj.weight", width, width), ("proj.bias", width)),
            *(("norm2.weight", width), ("norm2.bias", width), ("fc1.weight", 4 * width, width)),
            *(("fc1.bias", 4 * width), ("fc2.weight", width, 4 * width), ("fc2.bias", width)),
        ):
            shapes[f"blocks.{block}.{name}"] = tuple(shape)
    for layer in range(30):
        shapes[f"layers.{layer}.conv.weight"] = (half, half, 3, 3)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"layers.{layer}.norm.{name}"] = (half,)
    return {**shapes, **{f"head.{index}": (10, width) for index in range(6)}}


def model(total: int, seed: int) -> dict[str, Tensor]:
    """Return a model of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in mix(total).items()}


def write_models(folder: Path, total: int) -> tuple[list[Path], list[Path]]:
    """Write models as Lightning's checkpoints and as safetensors; return the paths of both."""
    checkpoints, safe = [], []
    for seed in range(MODELS):
        checkpoints.append(folder / f"{seed}.ckpt")
        torch.save({"state_dict": model(total, seed), "epoch": 1}, checkpoints[-1])
        safe.append(folder / f"{seed}.safetensors")
        fuse([checkpoints[-1]], output=safe[-1])
    return checkpoints, safe


def system_calls(paths: list[Path], output: Path, threads: int = 1) -> None:
    """Read ``paths`` and write as much as one of them, by large buffers and nothing else."""
    size = min(path.stat().st_size for path in paths)
    inputs = [os.open(path, os.O_RDONLY) for path in paths]
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    offsets, lock = iter(range(0, size, CHUNK)), threading.Lock()

    def work() -> None:
        buffer = memoryview(bytearray(CHUNK))
        while True:
            with lock:
                if (offset := next(offsets, None)) is None:
                    return
            part = buffer[: min(CHUNK, size - offset)]
            for descriptor in inputs:
                os.preadv(descriptor, [part], offset)
            os.pwrite(target, part, offset)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for descriptor in (*inputs, target):
        os.close(descriptor)


def loaded(paths: list[Path], output: Path) -> None:
    """Fuse as one would without a library."""
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
    torch.save({"state_dict": mean}, output)


def variants(checkpoints: list[Path], safe: list[Path], folder: Path) -> dict[str, Run]:
    """Return what is timed."""
    weights = Average((0.4, 0.3, 0.2, 0.1))
    ckpt, tensors = folder / "fused.ckpt", folder / "fused.safetensors"
    return {
        LIMIT: partial(system_calls, checkpoints, folder / "copied"),
        LIMIT_2: partial(system_calls, checkpoints, folder / "copied", 2),
        AVERAGE: partial(fuse, checkpoints, Average(), ckpt),
        WEIGHTED: partial(fuse, checkpoints, weights, ckpt),
        SAFE: partial(fuse, safe, Average(), tensors),
        LOADED: partial(loaded, checkpoints, ckpt),
        OF_TWO: partial(fuse, checkpoints[:2], Average(), ckpt),
        OF_EIGHT: partial(fuse, 2 * checkpoints, Average(), ckpt),
        **{
            name: partial(fuse, checkpoints[: 2 if beside == OF_TWO else MODELS], method, ckpt)
            for name, (method, beside) in METHODS.items()
        },
    }


def measure(runs: dict[str, Run], folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Return a row of figures for each variant."""
    times = in_turns(runs, folder, rounds)
    rows = []
    for name, own in times.items():
        beside = BESIDE.get(name, LIMIT)
        figures = {"seconds": statistics.median(own), **ratio(own, times[beside])}
        rows.append({"variant": name, "beside": beside, **figures, "goal": GOALS.get(name)})
    return rows


def anonymous(process: int | str = "self") -> int:
    """Return the anonymous memory of ``process``, in bytes; 0 of one that has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0) * 1024


def peak(paths: list[str], output: str) -> int:
    """Return how much more anonymous memory fusing took at any time than was in use before."""
    before = highest = anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    fuse(paths, Average(), output, overwrite=True)
    done.set()
    watcher.join()
    return highest - before


def memory(paths: list[Path], output: Path, note: str) -> dict[str, Any]:
    """Return a row with the memory that fusing ``paths`` takes in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fusing", "--peak", str(output), *map(str, paths)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    size = paths[0].stat().st_size
    return {"models": note, "size": size, "peak": int(said), "share": int(said) / size, "goal": MEMORY_GOAL}


def table(rows: list[dict[str, Any]], memories: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown tables."""
    lines = [
        f"| {MODELS} models into one by | s | beside | ratio (middle half of rounds) | aim |",
        "|---|---:|---|---:|---:|",
    ]
    for row in rows:
        spread = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        goal = "" if row["goal"] is None else f"{row['goal']:g}"
        lines.append(f"| {row['variant']} | {row['seconds']:.2f} | {row['beside']} | {spread} | {goal} |")
    lines += [
        "",
        "| average of | one model, MB | memory, MB | model sizes | aim |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in memories:
        sizes = f"{row['size'] / 1e6:.0f} | {row['peak'] / 1e6:.0f} | {row['share']:.2f}"
        lines.append(f"| {row['models']} | {sizes} | {row['goal']:g} |")
    return "\n".join(lines)


def figures(folder: Path, target: Path, total: int, rounds: int) -> tuple[list[Any], list[Any]]:
    """Return the rows of the tables."""
    checkpoints, safe = write_models(folder, total)
    rows = measure(variants(checkpoints, safe, target), target, rounds)
    output = target / "fused.ckpt"
    memories = [memory(checkpoints[:2] * times, output, f"{2 * times} models") for times in (1, 2, 4)]
    for path in (*checkpoints, *safe):
        path.unlink()
    large = [folder / f"large{seed}.ckpt" for seed in range(2)]
    for seed, path in enumerate(large):
        torch.save({"state_dict": model(4 * total, seed)}, path)
    return rows, [*memories, memory(large, output, "2 models, four times as large")]


def scratch(folder: str | None) -> AbstractContextManager[str]:
    """Return a folder of its own under ``folder``, which goes away."""
    return tempfile.TemporaryDirectory(prefix="fusing", dir=folder)


def main() -> None:
    """Measure, write the figures as JSON, and put the tables into their document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1200, help="of each model (default: 1200)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every variant (default: 7)")
    parser.add_argument(
        "--folder", default=None, help="for the models (default: the system's for temporary files)"
    )
    parser.add_argument("--output", default="/dev/shm", help="for what is written (default: /dev/shm)")
    parser.add_argument(
        "--try", dest="trial", action="store_true", help="print the tables, write nothing down"
    )
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak(chosen.peak[1:], chosen.peak[0]))
        return
    torch.set_num_threads(2)
    with scratch(chosen.folder) as folder, scratch(chosen.output) as target:
        rows, memories = figures(Path(folder), Path(target), chosen.megabytes * 10**6, chosen.rounds)
    shown = table(rows, memories)
    if chosen.trial:
        print(shown)
        return
    about = {"rounds": chosen.rounds, "megabytes": chosen.megabytes}
    record("fusing", {**about, "rows": rows, "memory": memories}, shown)


if __name__ == "__main__":
    main()
