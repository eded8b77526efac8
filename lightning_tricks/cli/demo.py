"""``lightning-tricks demo``: one small network trained plainly and with five techniques, and compared.

Both runs learn eight of the ten digits, get a new head, and go on with all ten: the same data, first
weights, base learning rate, batches and number of epochs. A share of the training labels is wrong, as labels
often are; those of validation are right.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lightning_tricks import LearningRate, OptimizerMixin, WarmupCosine, WeightFusion
from lightning_tricks.cli.demo_record import Record, Recorder, evaluate
from lightning_tricks.cli.demo_report import Arm, Deed, deed_table, draw, score_table, verdict
from lightning_tricks.cli.demo_settings import PHASES, Demo
from lightning_tricks.cli.demo_wandb import tracking
from lightning_tricks.core.extras import extra
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
from lightning_tricks.study.quiet import no_words, trained_quietly

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

__all__ = ["run_demo"]


def run_demo(demo: Demo) -> None:
    """Train, print the tables, write the figure and log both runs.

    Raises:
        ModuleNotFoundError: If a package of the extra ``demo`` is missing.
        OSError: If the output folder cannot be written.
    """
    with extra("demo"):
        import matplotlib  # noqa: F401  # found missing now, and not after the training
        import sklearn  # noqa: F401  # found missing now, too

    # Bound to the terminal now, because what techniques print while they train is kept from it.
    console, output = Console(file=sys.stdout), Path(demo.output)
    data = [demo.data(phase) for phase in range(len(PHASES))]
    plans: dict[str, list[list[Technique]]] = {
        "plain": [[] for _ in PHASES],
        "techniques": [demo.techniques(phase) for phase in range(len(PHASES))],
    }
    output.mkdir(parents=True, exist_ok=True)
    # Everything is written to a folder of its own and moved when it is whole.
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=output) as part, _quiet():
        folder = Path(part)
        with tracking({name: _config(demo, plan) for name, plan in plans.items()}, folder) as tracked:
            with _progress(console, demo.epochs * len(plans) * sum(map(_steps, data))) as on_step:
                arms = [
                    _train(demo, Arm(name), plan, data, tracked.loggers(name, len(PHASES)), folder, on_step)
                    for name, plan in plans.items()
                ]
            plain, arm = arms
            note = demo.caution(sum(record.steps for record in arm.records))
            console.print(_setting(demo, data[-1]), score_table(arms, PHASES, note=note), deed_table(arm))
            console.print(verdict(plain, arm, len(data[-1].val_set)))
            draw(plain, arm, PHASES, folder / "demo.png")
            tracked.finish(folder / "demo.png", {each.name: each.summary() for each in arms})
        figure = (folder / "demo.png").replace(output / "demo.png")
        lines = [f"Figure: {figure}", *tracked.keep(output / "wandb")]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _train(
    demo: Demo,
    arm: Arm,
    plan: list[list[Technique]],
    data: list[DigitsData],
    loggers: list[Logger],
    folder: Path,
    on_step: Callable[[], None],
) -> Arm:
    """Train through all phases, and note in ``arm`` what is to be shown."""
    previous: DigitsClassifier | None = None
    for phase, techniques in enumerate(plan):
        classes = len(data[phase].classes)
        previous = module = _classifier(demo, classes, previous)
        recorder = Recorder(classes=classes, on_step=on_step)
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=demo.epochs,
            callbacks=[recorder, *techniques],
            logger=loggers[phase],
            default_root_dir=folder / arm.name / str(phase),
            log_every_n_steps=5,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        with trained_quietly(trainer):
            trainer.fit(module, datamodule=data[phase])
        record = recorder.record
        arm.records.append(record)
        arm.scores.setdefault("raw", []).append(record.live[-1])
        if techniques:
            arm.scores.setdefault("averaged", []).append(record.validated[-1])
            fuses = any(isinstance(technique, WeightFusion) for technique in techniques)
            score = evaluate(module, data[phase].val_dataloader(), classes=classes) if fuses else None
            arm.scores.setdefault("fused", []).append(score)
        arm.deeds += [Deed(PHASES[phase], type(each).__name__, _outcome(each, record)) for each in techniques]
    return arm


def _outcome(technique: Technique, record: Record) -> dict[str, float | int | str]:
    if isinstance(technique, WarmupCosine | LearningRate):
        rates = next(iter(record.rates.values()))
        return {"first rate": rates[0], "highest": max(rates), "last": rates[-1]}
    done = technique.outcome()
    if isinstance(technique, WeightFusion):
        done.pop("kept", None)  # always, here, for the row in the other table
    return done


def _classifier(demo: Demo, classes: int, previous: DigitsClassifier | None) -> DigitsClassifier:
    """Return a new classifier; all but its head comes from ``previous``, if there is one."""
    torch.manual_seed(demo.seed)
    network = demo.network(classes)
    if previous is not None:
        learned = previous.network.state_dict()
        body = {name: value for name, value in learned.items() if not name.startswith("head.")}
        network.load_state_dict(body, strict=False)
    if (settings := demo.other_optimizer()) is None:
        return DigitsClassifier(network, classes=classes, lr=demo.rate)
    module = _Configured(network, classes=classes)
    module.optimizer_settings = settings
    return module


class _Configured(OptimizerMixin, DigitsClassifier):  # type: ignore[misc]  # of several settings a list
    """The classifier with another optimizer than its own."""


def _steps(data: DigitsData) -> int:
    """Return the optimizer steps of an epoch."""
    data.setup("fit")
    return len(data.train_dataloader())


def _config(demo: Demo, plan: list[list[Technique]]) -> dict[str, Any]:
    """Return what a run's page shall say of how it was trained."""
    techniques = {
        name: [repr(technique) for technique in phase] for name, phase in zip(PHASES, plan, strict=True)
    }
    return {**asdict(demo), "techniques": techniques}


def _setting(demo: Demo, data: DigitsData) -> str:
    size = sum(p.numel() for p in demo.network(10).parameters())
    return (
        f"\nA residual network with {size:,} parameters; {demo.training} training images, the labels of "
        f"{demo.label_noise:.0%} drawn at random, {len(data.val_set)} validation images with true labels; "
        f"{demo.epochs} epochs on eight classes, then {demo.epochs} on all; {demo.optimizer} with base "
        f"rate {demo.rate:g} in batches of {demo.batch_size}; seed {demo.seed}.\n"
    )


@contextmanager
def _progress(console: Console, steps: int) -> Iterator[Callable[[], None]]:
    """Show a bar for the whole demo; yields what is to be called after every step."""
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=steps)
        yield lambda: progress.advance(task)


@contextmanager
def _quiet() -> Iterator[None]:
    """One thread, and nothing printed that is not about the demo."""
    threads = torch.get_num_threads()
    # Steps this small gain little from a second thread, lose much where other processes want the cores, and
    # add numbers up in an order that depends on the number of threads.
    torch.set_num_threads(1)
    try:
        with no_words():
            yield
    finally:
        torch.set_num_threads(threads)
