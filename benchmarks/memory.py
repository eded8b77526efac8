"""The memory that techniques take beside their peers, at most and beyond a run without them.

Each in a process of its own: a run of a network of 16 layers of 1024 x 1024 weights in float32 without the
technique, then one with it, twelve steps of SGD and three validations each, no checkpoints. Told is the
difference of the most memory that both had at any time, as the kernel keeps it (``VmHWM``, set back before
each), in sets of weights: 1 is a copy of the network. It holds what is allocated for a moment, too. A small
network is trained before, so that imports do not count; and what is freed goes back to the system at once, so
that the figure is that of what is in use. Needs Linux with glibc.

Whole fusions are watched in ``benchmarks.memory_fusing``.

    python -m benchmarks.memory --runs 3 --mergekit /path/to/mergekit/bin/python
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, redirect_stdout
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks as pl
import torch
from lightning.pytorch import Trainer
from rich.progress import track

import lightning_tricks as lt
from benchmarks import memory_peers as peers
from benchmarks.memory_fusing import fusions
from benchmarks.memory_runs import LAYERS, Network, Run, TwoLosses, Variant, by, rows, stepped
from benchmarks.peers.beside import KINDS
from benchmarks.peers.cases import version_of
from benchmarks.record import record
from benchmarks.steps import quiet

WIDTH, SMALL, EPOCHS = 1024, 8, 3
M_MMAP_THRESHOLD, BYTES = -3, 1 << 16
"""Of glibc's mallopt: what is larger is mapped, and given back when it is freed."""
CLIP, ADAPTIVE, AVERAGE = "clipping by the norm", "adaptive clipping", "an exponential average"
SWA, LAWA, POST_HOC = "a mean of snapshots", f"a mean of the last {peers.KEPT}", "averages for any length"
SLOW, SAM, FREE = "slow weights", "sharpness-aware steps", "Schedule-Free steps"
EWC, SURGERY = "consolidation of one task", "a gradient of two losses"


def consolidated(width: int) -> Run:
    """Return a run with ours, which looks at all rows."""
    return Network(width), [lt.ElasticWeightConsolidation(strength=1.0, data=rows(width))], {}


def surgery(width: int) -> Run:
    """Return a run with ours."""
    return TwoLosses(width), [lt.GradientSurgery(method=lt.PCGrad())], {}


VARIANTS = [
    Variant(CLIP, "`GradientClip(max_norm=1.0)`", by(lt.GradientClip)),
    Variant(
        CLIP,
        "Trainer(gradient_clip_val=1.0)",
        lambda width: (Network(width), [], {"gradient_clip_val": 1.0}),
        "lightning",
    ),
    Variant(ADAPTIVE, "`AdaptiveGradientClip()`", by(lt.AdaptiveGradientClip)),
    Variant(ADAPTIVE, "timm's AGC", by(peers.timms_clipping), "timm"),
    Variant(ADAPTIVE, "Composer GradientClipping", by(peers.composers_clipping), "mosaicml"),
    Variant(AVERAGE, "`EMAWeights()`", by(lt.EMAWeights)),
    Variant(AVERAGE, "Lightning EMAWeightAveraging", by(pl.EMAWeightAveraging), "lightning"),
    *[
        Variant(AVERAGE, who.replace("`", ""), by(partial(peers.Evaluated, kind, 0.999)), peer)
        for who, (peer, kind) in KINDS.items()
    ],
    Variant(SWA, "`SWAWeights(start=1, every=1)`", by(partial(lt.SWAWeights, start=1, every=1))),
    Variant(
        SWA,
        "Lightning StochasticWeightAveraging",
        by(partial(pl.StochasticWeightAveraging, 1e-4, swa_epoch_start=1)),
        "lightning",
    ),
    Variant(SWA, "torch AveragedModel", by(partial(peers.Evaluated, peers.Mean, 0.0)), "torch"),
    Variant(LAWA, "`LAWA(every=1)`", by(partial(lt.LAWA, every=1))),
    Variant(LAWA, '`LAWA(every=1, store="memory")`', by(partial(lt.LAWA, every=1, store="memory"))),
    Variant(LAWA, "copies and their mean, by hand", by(peers.Copies)),
    Variant(POST_HOC, "`PostHocEMA()`", by(lt.PostHocEMA)),
    Variant(POST_HOC, "ema-pytorch PostHocEMA", by(peers.PostHoc), "ema-pytorch"),
    Variant(SLOW, "`Lookahead(k=2)`", by(partial(lt.Lookahead, k=2))),
    Variant(SLOW, "timm Lookahead", stepped(peers.lookahead_of_timm), "timm"),
    Variant(SAM, "`SharpnessAware()`", by(lt.SharpnessAware)),
    Variant(SAM, "Composer SAM", stepped(peers.sam_of_composer), "mosaicml"),
    Variant(FREE, "`ScheduleFree()`", stepped(peers.schedule_free, lt.ScheduleFree)),
    Variant(
        FREE, "schedulefree, switched by hand", stepped(peers.schedule_free, peers.Switching), "schedulefree"
    ),
    Variant(EWC, "`ElasticWeightConsolidation()`", consolidated),
    Variant(EWC, "Avalanche EWCPlugin", lambda width: (peers.Avalanches(width), [], {}), "avalanche-lib"),
    Variant(SURGERY, "`GradientSurgery()`", surgery),
    Variant(SURGERY, "torchjd PCGrad", lambda width: (peers.TorchJDs(width), [], {}), "torchjd"),
]


def most(run: Run, width: int) -> int:
    """Return the most memory that this process had at any time of ``run``, in bytes."""
    module, callbacks, settings = run
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    gc.collect()  # what the run before left in circles
    Path("/proc/self/clear_refs").write_text("5")
    trainer.fit(module, rows(width), rows(width))
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def extra(index: int, width: int) -> float:
    """Return the memory that a variant takes beyond a run without it, in sets of weights."""
    build = VARIANTS[index].build
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, BYTES)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, chdir(folder), redirect_stdout(io.StringIO()), quiet():
        for small in ((Network(SMALL), [], {}), build(SMALL)):
            most(small, SMALL)
        plain = most((Network(width), [], {}), width)
        return (most(build(width), width) - plain) / (4 * LAYERS * width**2)


def in_a_process(index: int, width: int = WIDTH) -> float:
    """Return the same, from a process of its own that shares our imports."""
    with ProcessPoolExecutor(1, get_context("fork")) as process:
        return process.submit(extra, index, width).result()


def measure(runs: int) -> list[dict[str, Any]]:
    """Return a row of figures for each variant that is installed."""
    found: dict[int, list[float]] = {}
    for index, variant in enumerate(VARIANTS):
        if variant.peer is None or version_of(variant.peer):
            found[index] = []
        else:
            print(f"{variant.who} is left out: {variant.peer} is not installed")
    for _ in range(runs):
        for index in track(found, "memory"):
            found[index].append(in_a_process(index))
    return [row(VARIANTS[index], sets) for index, sets in found.items()]


def row(variant: Variant, sets: Sequence[float]) -> dict[str, Any]:
    """Return the figures of one, in sets of weights."""
    version = variant.peer and version_of(variant.peer)
    spread = {"sets": statistics.median(sets), "low": min(sets), "high": max(sets)}
    return {"what": variant.what, "who": variant.who, "peer": variant.peer, "version": version, **spread}


def table(result: dict[str, Any]) -> str:
    """Return the figures as Markdown tables."""
    lines = ["| | with | sets of weights at most (least to greatest) |", "|---|---|---:|"]
    lines += [f"| {row['what']} | {row['who']} | {told(row)} |" for row in result["rows"]]
    size = f"four models of {result['megabytes'] / 1000:g} GB into one"
    lines += ["", f"| {size} | with | sizes of one model at most (least to greatest) |", "|---|---|---:|"]
    lines += [f"| {row['what']} | {row['who']} | {told(row)} |" for row in result["fusions"]]
    return "\n".join(lines)


def told(row: dict[str, Any]) -> str:
    """Return the figure with its spread."""
    return f"{row['sets']:z.2f} ({row['low']:z.2f} to {row['high']:z.2f})"


def main() -> None:
    """Measure, write the figures as JSON, and put the tables into their document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="processes of each (default: 3)")
    parser.add_argument("--megabytes", type=int, default=400, help="of each model to fuse (default: 400)")
    parser.add_argument("--mergekit", help="Python of an environment that has mergekit")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # threads would not live on in the processes
    rows_of_runs = measure(chosen.runs)
    fused = fusions(chosen.megabytes * 10**6, chosen.runs, chosen.mergekit)
    result = {"runs": chosen.runs, "megabytes": chosen.megabytes, "rows": rows_of_runs, "fusions": fused}
    record("memory", result, table(result))


if __name__ == "__main__":
    main()
