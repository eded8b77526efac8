"""Figures of one style, with colours that people of any colour vision can tell apart.

Reference: Okabe and Ito, "Color Universal Design", 2008, https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

from lightning_tricks.core.extras import extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    *("BLACK", "BLUE", "COLOURS", "GREEN", "GREY", "ORANGE", "PURPLE", "RED", "SKY"),
    *("STYLE", "new_figure"),
]

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#999999"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.prop_cycle": f"cycler(color={list(COLOURS)})",
}
"""For matplotlib's ``rcParams``; lines have these colours in turn."""


@contextmanager
def new_figure(path: str | PathLike[str], *, width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure, which is written as a PNG to ``path`` at the end of the ``with`` block.

    Args:
        path: Where to.
        width: In inches.
        height: In inches.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed; names the extra to install.
        OSError: If the picture cannot be written.
    """
    with extra("plots"):
        import matplotlib as mpl
        from matplotlib.figure import Figure

    # Without pyplot: no state of the process, and no display, is touched.
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        yield figure
        figure.savefig(path, format="png")
