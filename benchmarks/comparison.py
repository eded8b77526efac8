"""The README's short tables of what ours take beside the best of their peers, from recorded figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.shapes import SETS

__all__ = ["comparison"]

_PEERS = ("torch", "timm", "ema-pytorch", "diffusers", "Lightning")
Row = tuple[str, str, float, str, float]
"""What is done; what ours is, and its seconds; what the peer is, and its seconds."""


def comparison(results: Path) -> str:
    """Return the tables of time and of memory as Markdown.

    Args:
        results: The folder of figures.
    """
    lines = ["| | ours | the fastest peer | ours takes |", "|---|---:|---:|---:|"]
    for what, ours, seconds, peer, theirs in _rows(results):
        lines.append(
            f"| {what} | {ours}: {_time(seconds)} | {peer}: {_time(theirs)} | {seconds / theirs:.2g} of it |"
        )
    return "\n".join([*lines, "", *_memory(_figures(results, "memory"))])


def _memory(figures: dict[str, Any]) -> Iterator[str]:
    yield (
        "| memory at most, in sets of weights (of fusions: of a whole command, in sizes of one model) "
        "| ours | the peer that takes least |"
    )
    yield "|---|---:|---:|"
    into = f"four models of {figures['megabytes'] / 1000:g} GB into one, "
    for rows, before in ((figures["rows"], ""), (figures["fusions"], into)):
        for what in dict.fromkeys(row["what"] for row in rows):
            alike = [row for row in rows if row["what"] == what]
            ours = next(row for row in alike if row["who"].startswith("`"))
            peers = [row for row in alike if not row["who"].startswith("`")]
            if peers and not what.startswith("help"):  # what the start of a command takes
                least = min(peers, key=lambda row: row["sets"])
                told = (f"{row['who']}: {row['sets']:z.2f}" for row in (ours, least))
                yield f"| {before}{what} | {' | '.join(told)} |"


def _rows(results: Path) -> Iterator[Row]:
    for row in _figures(results, "steps")["rows"]:
        if "GradientClip" not in row["theirs"]:  # one of ours beside another
            what = "rates" if row["ours"] == "LearningRate" else "clipping the gradients"
            what += f" of {row['weights']}"
            yield what, f"`{row['ours']}`", row["ours_us"] / 1e6, row["theirs"], row["theirs_us"] / 1e6
    averaging = _figures(results, "averaging")["rows"]
    for weights in SETS:
        rows = {row["variant"]: row["update_us"] / 1e6 for row in averaging if row["weights"] == weights}
        peers = {name: rows[name] for name in rows if name.startswith(_PEERS)}
        moved = {name: rows[name] for name in peers if name.endswith(("in and out", "restore"))}
        for what, own, others in (
            ("an update of an average", "EMAWeights", {k: v for k, v in peers.items() if k not in moved}),
            ("an average in and out", "EMAWeights, in and out", moved),
        ):
            best = min(others, key=lambda name: others[name])
            yield f"{what} of {weights}", "`EMAWeights`", rows[own], best.partition(",")[0], others[best]
    fusing = {row["variant"]: row["seconds"] for row in _figures(results, "fusing")["rows"]}
    plain = "torch.load, mean, torch.save"
    yield "four models of 1.2 GB into one", "`fuse`", fusing["average, .ckpt"], plain, fusing[plain]
    for row in _figures(results, "fusing_commands")["commands"]:
        if row["goal"] is not None:
            what = f"the same by {row['command']}, whole commands"
            yield what, "`lightning-tricks fuse`", row["seconds"], "mergekit", row["mergekit"]


def _figures(results: Path, name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((results / f"{name}.json").read_text())
    return figures


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
