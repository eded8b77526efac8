"""What techniques of ours bring on three small real tasks, and what they cost: each alone, and all but each.

    digits      1,000 digits, a fifth of whose labels are drawn anew; a residual network, SGD, 225 steps
    characters  the text of Python's own help; a transformer, AdamW, 200 steps
    gan         8x8 digits drawn by DigitsGAN without a penalty, Adam, 180 steps

Metrics, techniques and their settings were chosen before any result, and stay as they are: defaults, or
what the ready lists and modules of ``recipes`` have. Digits are measured by accuracy, for smoothed and mixed
labels change what confidence means, and a loss would pay for that alone; characters by the loss, which is
what such models are compared by; the GAN by the Fréchet distance, which sees both poor samples and few
kinds. What chooses weights by validation data, as ``WeightFusion`` does, is left out: it would be judged by
what it chose.

What a step costs is measured apart, in short trainings that take turns in a random order, by the processor's
time: of one thread that is the time on a machine that does nothing else. The median over turns, with the
least and the greatest, by that without techniques of the same turn.

Trials are kept in ``ablation/`` (not in git): interrupted, the same command goes on.

    python -m benchmarks.ablation --seeds 5
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from rich.progress import Progress as Bar

from benchmarks.ablation_tasks import SIZES, TASKS, Built, Task
from benchmarks.record import ROOT, record
from lightning_tricks.lifecycle.figures import new_figure
from lightning_tricks.study.ablation import Ablation, Progress
from lightning_tricks.study.arguments import made_from
from lightning_tricks.study.effects import Effects, Outcome
from lightning_tricks.study.report import draw_panels, table_rows
from lightning_tricks.study.trial import run_trial

STORAGE = ROOT / "ablation" / "benchmark.journal"


def measured(name: str, seeds: int, bar: Bar) -> Effects:
    """Run what is left of a task's trials."""
    task, line = TASKS[name], bar.add_task(name)
    study = Ablation(
        task.build,
        task.techniques,
        seeds=seeds,
        metric=task.metric,
        mode=task.mode,
        name=name,
        storage=STORAGE,
        settings=SIZES[name],
    )

    def watch(progress: Progress) -> None:
        bar.update(line, completed=progress.done + progress.dead, total=progress.wanted)

    return study.run(watch)


class Clock(Callback):
    """Notes the processor's time at the start of each training step."""

    def __init__(self) -> None:
        """Begin with none."""
        self.marks: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Note it."""
        self.marks.append(time.process_time())

    @property
    def step_ms(self) -> float:
        """The median over steps, in milliseconds."""
        return 1000 * statistics.median(after - before for before, after in pairwise(self.marks))


def step_ms(task: Task, outcome: Outcome) -> float:
    """Return the time of a step with the techniques of a trial."""
    clock = Clock()

    def short(seed: int) -> Built:
        module, data, settings = task.build(seed)
        few = {"max_epochs": 2, "limit_train_batches": 15, "limit_val_batches": 1, "callbacks": [clock]}
        return module, data, {**settings, **few}

    techniques = [made_from(task.techniques[name]) for name in outcome.names]
    run_trial(short, techniques, seed=outcome.seed, metric=task.metric)
    return clock.step_ms


def timed(name: str, effects: Effects, bar: Bar) -> Effects:
    """Return the same effects with times of steps that were measured in turns, one for each seed."""
    shown = {(), effects.names, *((each,) for each in effects.names)}
    turns = [each for each in effects.outcomes if each.names in shown and each.result]
    random.Random(0).shuffle(turns)
    turns.sort(key=lambda outcome: outcome.seed)
    times = {
        (each.names, each.seed): step_ms(TASKS[name], each)
        for each in bar.track(turns, description=f"{name}, steps")
    }

    def with_time(outcome: Outcome) -> Outcome:
        if outcome.result is None:
            return outcome
        result = {key: outcome.result[key] for key in ("value", "host", "device")}
        found = times.get((outcome.names, outcome.seed))
        return replace(outcome, result=result if found is None else {**result, "step_ms": found})

    return replace(effects, outcomes=tuple(map(with_time, effects.outcomes)))


def table(found: dict[str, Effects]) -> str:
    """Return the effects of all tasks and the time of a step; what helps or harms clearly is bold."""
    lines = ["| task | technique | alone | among the others | step time |", "|---|---|---:|---:|---:|"]
    for name, effects in found.items():
        plain = effects.values(()).values()
        base = f"{sum(plain) / len(plain):.3g}" if plain else ""
        lines.append(f"| {name}, `{effects.metric}` | none: {base} | | | |")
        for technique, *cells, _ in table_rows(effects, ("**", "**"))[1:]:
            label = f"`{technique}`" if technique in effects.names else technique
            lines.append(f"| {name} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(found: dict[str, Effects]) -> str:
    """Return in words what the intervals tell, also of what did not help."""
    lines = []
    for name, effects in found.items():
        rows = [row for row in effects.rows if row.name in effects.names]
        parts = []
        for place, kind in (("alone", "alone"), ("added to all the others", "among")):
            clear = [(row.name, each) for row in rows if (each := getattr(row, kind)) and each.is_clear]
            helps = [f"`{label}`" for label, each in clear if each.mean > 0]
            harms = [f"`{label}`" for label, each in clear if each.mean < 0]
            unclear = len(rows) - len(clear)
            parts.append(
                f"{place}, {', '.join(helps) or 'none'} clearly helped, {', '.join(harms) or 'none'} clearly "
                f"harmed, and of {unclear} of {len(rows)} the interval holds 0"
            )
        lines.append(f"- {name}: {'; '.join(parts)}.")
    return "\n".join(lines)


def draw(found: dict[str, Effects], path: Path) -> None:
    """Draw effects and costs of all tasks into a PNG at ``path``."""
    heights = [1.9 + 0.42 * len(effects.rows) for effects in found.values()]
    with new_figure(path, width=11.5, height=sum(heights)) as figure:
        parts = figure.subfigures(len(found), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (name, effects) in zip(parts, found.items(), strict=True):
            part.suptitle(name, fontweight="bold")
            draw_panels(part, effects)


def figures(effects: Effects) -> dict[str, Any]:
    """Return effects, and of each arm the metric and the time of a step of each seed, as plain values."""
    plain = effects.plain()
    trials: dict[str, dict[str, dict[int, float]]] = {}
    for outcome in effects.outcomes:
        for key in ("value", "step_ms"):
            if outcome.result and key in outcome.result:
                trials.setdefault(outcome.arm, {}).setdefault(key, {})[outcome.seed] = outcome.result[key]
    died = [f"{each.arm}, seed {each.seed}: {each.error}" for each in effects.dead]
    return {
        "metric": effects.metric,
        "mode": effects.mode,
        "effects": plain["effects"],
        "trials": trials,
        "died": died,
    }


def main() -> None:
    """Run the trials that are left, and write figures, picture and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="trials of each arm (default: 5)")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=[*TASKS], help="if not all, nothing is written"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # more only wait for one another in networks as small as these
    asked = [name for name in TASKS if name in arguments.tasks]
    with Bar() as bar:
        found = {name: measured(name, arguments.seeds, bar) for name in asked}
        found = {name: timed(name, effects, bar) for name, effects in found.items()}
    if len(found) < len(TASKS):
        print(table(found), summary(found), sep="\n\n")
        return
    draw(found, ROOT / "docs" / "ablation.png")
    results = {name: figures(effects) for name, effects in found.items()}
    record("ablation", {"seeds": arguments.seeds, "tasks": results}, f"{table(found)}\n\n{summary(found)}")


if __name__ == "__main__":
    main()
