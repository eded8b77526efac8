"""Put every question to everyone, and write the table of what came out into ``docs/peers.md``.

Each question is asked in a process of its own. What is not installed is left out and named; mergekit needs an
environment of its own, whose Python ``MERGEKIT_PYTHON`` names.

    python -m benchmarks.peers
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

from rich.progress import track

from benchmarks.peers.cases import Case, version_of
from benchmarks.record import ROOT, record

# In the order of a training, and last the one about the README.
QUESTIONS = (
    "layer_wise_rates",
    "two_owners",
    "micro_batches",
    "plateau_and_warmup",
    "longer_run",
    "smoothed_and_ignored",
    "fisher_per_sample",
    "conflicting_losses_under_ddp",
    "nan_gradients",
    "agc_of_zeros",
    "clip_manual",
    "clip_fused",
    "scaler_skips",
    "unfreeze_all",
    "unfreeze_keeps_batchnorm",
    "unfreeze_under_ddp",
    "resume_unfreezing",
    "resume_average",
    "several_optimizers",
    "bf16_average",
    "integer_buffers",
    "validation_before_start",
    "interrupted_validation",
    "checkpoint_holds_average",
    "test_of_checkpoint",
    "batchnorm_of_average",
    "post_hoc_ema",
    "fuse_checkpoints",
    "ties_of_small_tensors",
    "nan_in_checkpoints",
    "moving_over",
)
WORDS = {
    "right": "right",
    "refused": "refused",
    "fails": "**fails**",
    "wrong": "**wrong**",
    "warned": "**wrong**, with a warning",
    "known": "**wrong**, as documented",
}


def asked(name: str) -> dict[str, Any]:
    """Return what comes out of a question, by who is asked."""
    command = [sys.executable, "-m", f"benchmarks.peers.{name}", "--json"]
    ended = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def cell(cases: list[Case], verdicts: dict[str, Any]) -> str:
    """Return what some do, as a cell of the table."""
    parts = []
    for case in cases:
        verdict = verdicts[case.who]
        told = "not installed" if verdict is None else WORDS[verdict["outcome"]]
        # What is right needs no evidence here.
        seen = f" ({verdict['seen']})" if verdict and verdict["outcome"] != "right" else ""
        parts.append(f"{case.who}: {told}{seen}".replace("|", "\\|"))
    return "<br>".join(parts)


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return a row for each question."""
    lines = ["| | here | elsewhere |", "|---|---|---|"]
    for name, verdicts in found.items():
        module = import_module(f"benchmarks.peers.{name}")
        ours = [case for case in module.CASES if not case.peer]
        theirs = [case for case in module.CASES if case.peer]
        question = f"[{module.QUESTION}](../benchmarks/peers/{name}.py)"
        lines.append(f"| {question} | {cell(ours, verdicts)} | {cell(theirs, verdicts)} |")
    return "\n".join(lines)


def main() -> None:
    """Ask, and write the answers down with everyone's version."""
    cases = [case for name in QUESTIONS for case in import_module(f"benchmarks.peers.{name}").CASES]
    versions = {peer: version_of(peer) for peer in sorted({case.peer for case in cases if case.peer})}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = track(pool.map(asked, QUESTIONS), "questions", len(QUESTIONS))
        found = dict(zip(QUESTIONS, answers, strict=True))
    record("peers", {"versions": versions, "questions": found}, table(found))


if __name__ == "__main__":
    main()
