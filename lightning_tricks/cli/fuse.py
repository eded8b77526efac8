"""``lightning-tricks fuse``: models in files become one, are compared, or what would be done is shown."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lightning_tricks.cli.fuse_settings import Asked
from lightning_tricks.cli.likeness import compare
from lightning_tricks.cli.method_functions import evaluation, probe_of
from lightning_tricks.cli.refusal import RefusedError
from lightning_tricks.fusion.fuse import Fusion, Opened
from lightning_tricks.fusion.output import check_output
from lightning_tricks.fusion.plan import Matching, Step
from lightning_tricks.fusion.slicing import Effort
from lightning_tricks.lifecycle.opening import Readable, Reading
from lightning_tricks.lifecycle.table import text_table

__all__ = ["fusion_of", "run_fuse"]


def fusion_of(task: Asked) -> Fusion:
    """Return the fusion that ``task`` asks for.

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If one is not as it must be.
    """
    return Fusion(
        models=cast("list[Readable]", list(task.models)),
        method=task.method,
        reading=Reading(task.which, task.allow_pickle, task.verify),  # type: ignore[arg-type]  # it checks that
        matching=Matching(task.prefix, task.allow_missing),
        effort=Effort(task.max_memory, task.threads),
        evaluate=None if task.evaluate is None else evaluation(task.evaluate, task.method),
        probe=None if task.probe is None else probe_of(task.probe, task.method),
    )


def run_fuse(task: Asked, fusion: Fusion) -> None:
    """Do what ``task`` asks for.

    Raises:
        OSError: If a file cannot be read or written.
        RefusedError: If the models do not fit, or hold what they must not.
    """
    try:
        with fusion.opened() as found:
            if task.compare:
                compare(found, png=task.png, as_json=task.json)
                return
            output = None if task.output is None else Path(task.output)
            if output is not None:
                check_output(output, found.models, found.steps, overwrite=task.force)
            if task.dry_run:
                _show_plan(found, as_json=task.json)
            elif output is not None:
                _write(found, output, task)
    except (TypeError, ValueError) as error:
        raise RefusedError(str(error).replace("allow_pickle", "--allow-pickle")) from error


def _write(found: Opened, output: Path, task: Asked) -> None:
    begin = time.perf_counter()
    with _progress(quiet=task.json) as told:
        found.written(output, progress=told, overwrite=task.force, sha256=task.sha256)
    seconds = time.perf_counter() - begin
    size, count, method = output.stat().st_size, found.bytes_read, found.fusion.method
    if task.json:
        about = {
            "output": str(output),
            "size": size,
            "models": len(found.models),
            "method": repr(method),
        }
        chosen = {"found": found.found} if found.found else {}
        print(json.dumps({**about, **chosen, "bytes_read": count, "seconds": seconds}))
        return
    rate = f"{decimal(count)} read in {seconds:.1f} s"
    print(f"written: {output}, {decimal(size)}, from {_count(found)} by {method!r}; {rate}")
    for line in _findings(found):
        print(line)


def _findings(found: Opened) -> Iterator[str]:
    """Yield what the method tells of its choice, model by model."""
    about = found.found
    if "members" in about:
        # Scores are better the higher they are; a metric that is better the lower has been turned round.
        sign = -1 if getattr(found.fusion.method, "mode", None) == "min" else 1
        count = len(about["members"])
        yield f"{count} of {len(found.models)} are taken, together at {sign * about['score']:.4g}:"
        for index, model in enumerate(found.models):
            said = "taken" if index in about["members"] else "left"
            yield f"  {model.label}: {sign * about['scores'][index]:.4g}, {said}"
    for model, share in zip(found.models, about.get("coefficients", []), strict=False):
        yield f"  {model.label}: {share:.4g} of it"


def _count(found: Opened) -> str:
    count = len(found.models)
    if count == 1:
        return "1 model alone, with which nothing is fused,"
    # A base comes first, whether the method names its file or not.
    based = "base" in signature(type(found.fusion.method)).parameters
    return f"{count} models" + (f" ({found.models[0].label} is the base)" if based else "")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Give what shows how many bytes are done, how fast, and how long it will take; in a terminal alone."""
    console = Console(stderr=True)
    columns = (
        TextColumn("fusing"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("fusing")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show_plan(found: Opened, *, as_json: bool) -> None:
    rows = [_row(found, step) for step in found.steps]
    written = sum(step.stored.nbytes for step in found.steps)
    sums = {"bytes_read": found.bytes_read, "bytes_written": written, "memory": found.memory}
    if as_json:
        print(json.dumps({"tensors": rows, **sums}))
        return
    table = text_table(
        f"{_count(found)} by {found.fusion.method!r}:",
        {"tensor": "left", "shape": "left", "type": "left", "MB": "right", "what is done": "left"},
        [
            (
                " = ".join(row["names"]),
                " x ".join(map(str, row["shape"])) or "-",
                row["type"],
                f"{row['bytes'] / 1e6:.3f}",
                row["action"],
            )
            for row in rows
        ],
    )
    amounts = ", ".join(f"{decimal(value)} {name}" for name, value in zip(_SUMS, sums.values(), strict=True))
    print(f"{table}\n{amounts}; nothing has been written")


_SUMS = ("to read", "to write", "of memory for the tensors that are worked on")


def _row(found: Opened, step: Step) -> dict[str, Any]:
    stored = step.stored
    action = {
        "fuse": "fused if they differ",
        "last": "taken from the last model",
        "lone": "taken from the last model that has it",
    }[step.action]
    if step.action == "fuse":
        entries = found.slicing.entries(step)
        action += "" if entries >= stored.numel else f", in {-(-stored.numel // entries)} slices"
    kind = str(stored.dtype).removeprefix("torch.")
    return {
        "names": list(step.names),
        "shape": list(stored.shape),
        "type": kind,
        "bytes": stored.nbytes,
        "action": action,
    }
