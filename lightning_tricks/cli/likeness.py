"""``lightning-tricks fuse --compare``: how alike models are, as a table, as JSON and as a heat map."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_tricks.fusion.comparison import Likeness, by_layer, likenesses
from lightning_tricks.fusion.fuse import Opened
from lightning_tricks.lifecycle.figures import new_figure
from lightning_tricks.lifecycle.table import text_table

__all__ = ["compare", "draw"]

_TALLEST = 200  # Rows of a heat map that can be told apart.


def compare(found: Opened, *, png: str | None, as_json: bool) -> None:
    """Print how alike the first model is to each of the others, and draw it at ``png`` if that is given.

    Raises:
        ModuleNotFoundError: If a picture is asked for and matplotlib is not installed.
        OSError: If the picture cannot be written.
    """
    labels = [model.label for model in found.models]
    tensors = [likenesses(found.steps, other) for other in range(1, len(labels))]
    if png is not None:
        draw(tensors, labels, png)
    if as_json:
        print(json.dumps({label: _plain(each) for label, each in zip(labels[1:], tensors, strict=True)}))
        return
    for label, each in zip(labels[1:], tensors, strict=True):
        print(_table(labels[0], label, by_layer(each)))
    if png is not None:
        print(f"written: {png}")


def _table(first: str, second: str, layers: Mapping[str, Likeness]) -> str:
    rows = {**layers, "all": sum(layers.values(), Likeness())}
    columns = ("cosine", "distance", "norm of a", "norm of b")
    return text_table(
        f"a: {first}, b: {second}; distance is |a - b| / |a|",
        {"layer": "left", **dict.fromkeys(columns, "right")},
        [(name, *map(_short, (each.cosine, each.distance, *each.norms))) for name, each in rows.items()],
    )


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def _plain(tensors: Mapping[str, Likeness]) -> dict[str, dict[str, float | list[float] | None]]:
    return {
        name: {"cosine": _number(each.cosine), "distance": _number(each.distance), "norms": list(each.norms)}
        for name, each in tensors.items()
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON knows no NaN


def draw(tensors: Sequence[Mapping[str, Likeness]], labels: Sequence[str], path: str) -> None:
    """Draw the cosine of each tensor, layers downwards and what they hold to the right, as a PNG at ``path``.

    Args:
        tensors: For each model but the first its likeness to that.
        labels: Of all models.
        path: Of the picture.
    """
    layers = list(dict.fromkeys(_split(name)[0] for name in tensors[0]))
    parts = list(dict.fromkeys(_split(name)[1] for name in tensors[0]))
    height = min(40.0, 1.5 + 0.18 * len(layers))
    width = 3.0 + len(tensors) * max(1.5, 0.5 * len(parts))
    with new_figure(path, width=width, height=height) as figure:
        panels = figure.subplots(1, len(tensors), sharey=True, squeeze=False)[0]
        for panel, each, label in zip(panels, tensors, labels[1:], strict=True):
            cells = [[math.nan] * len(parts) for _ in layers]
            for name, alike in each.items():
                layer, part = _split(name)
                cells[layers.index(layer)][parts.index(part)] = alike.cosine
            panel.grid(False)
            panel.set_facecolor(
                "#dddddd"
            )  # where there is no tensor, or no direction; white is a cosine of 0
            image = panel.imshow(cells, vmin=-1, vmax=1, cmap="RdBu", aspect="auto", interpolation="nearest")
            panel.set_xticks(range(len(parts)), parts, rotation=90, fontsize=7)
            step = -(-len(layers) // _TALLEST)
            panel.set_yticks(range(0, len(layers), step), layers[::step], fontsize=6)
            panel.set_title(Path(label).name, fontsize=8)
        figure.colorbar(image, ax=list(panels), label=f"cosine with {Path(labels[0]).name}")


def _split(name: str) -> tuple[str, str]:
    layer, _, part = name.rpartition(".")
    return (layer, part) if layer else (name, "")
