"""The curve from snapshot to snapshot of a run: measured by its validation, shown by its loggers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_tricks.fusion.curve import Curve, along, draw_curve
from lightning_tricks.fusion.interpolate import Interpolate
from lightning_tricks.lifecycle import files
from lightning_tricks.lifecycle.processes import in_first
from lightning_tricks.lifecycle.wandb_media import log_line

if TYPE_CHECKING:
    from lightning_tricks.fusion.candidates import Candidates
    from lightning_tricks.lifecycle.evaluation import Objective

__all__ = ["RunCurve"]


@dataclass(frozen=True)
class RunCurve:
    """Measures and shows it.

    Attributes:
        tried: Has the snapshots, and measures what lies between them.
        objective: The metric.
    """

    tried: Candidates
    objective: Objective

    def measured(self, points: int) -> Curve:
        """Return the curve with so many points on each line; the module then holds the last snapshot."""
        models = self.tried.snapshots()

        def measure(index: int, share: float) -> float:
            model = Interpolate(1.0 - share).fuse(models[index : index + 2]) if share else models[index]
            return self.objective.metric(self.tried.score(self.objective, model))

        return along(len(models), points, measure, mode="max" if self.objective.sign > 0 else "min")

    def show(self, curve: Curve, *, step: int) -> str:
        """Log ``curve`` as a plot, and draw it in the folder of checkpoints if matplotlib is installed.

        Args:
            curve: What is shown.
            step: For which it is logged.

        Returns:
            The path of the picture, or why there is none.

        Raises:
            OSError: If the picture cannot be written.
        """
        trainer, axes = self.tried.weights.trainer, ("snapshot", self.objective.monitor)
        name = f"{self.tried.name}/curve"
        log_line(trainer, name, curve.positions, curve.values, axes=axes, step=step)

        def draw() -> str:
            path = files.free_path(files.checkpoint_folder(trainer) / "curve.png")
            try:
                with files.written_whole(path) as part:
                    draw_curve(curve, part, axes=axes)
            except ModuleNotFoundError as error:
                return f"no {path.name}, since {error}"
            return str(path)

        return in_first(trainer, draw)
