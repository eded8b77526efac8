"""The end of a run: fused weights are measured, with either kind of BatchNorm statistics, and stay or not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_tricks.fusion.curve import Curve
from lightning_tricks.fusion.provenance import KEY, provenance
from lightning_tricks.fusion.run_curve import RunCurve
from lightning_tricks.lifecycle import files
from lightning_tricks.lifecycle.batchnorm import learning_batchnorms
from lightning_tricks.lifecycle.notice import say, warn

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_tricks.core.tensors import Model
    from lightning_tricks.fusion.candidates import Candidates
    from lightning_tricks.lifecycle.evaluation import Objective

__all__ = ["Ending", "Outcome", "not_worse"]

Outcome = dict[str, float | int | str]
"""What came of it, in the words of its metrics."""


def not_worse(fused: float, before: float) -> bool:
    """Return whether a score, higher is better, is at least as good; NaN is worse than any number."""
    return fused >= before or (math.isnan(before) and not math.isnan(fused))


@dataclass(kw_only=True)
class Ending:
    """Decides on fused weights.

    Attributes:
        tried: Puts them into the module and measures them.
        objective: What they, and the weights before, are measured by; ``None`` if they are not.
        both: Whether BatchNorm statistics are tried as they are fused and anew, and the better stay.
        always: Whether the fused weights stay, whatever is measured.
        points: Of the curve on each line; ``None`` for no curve.
        curve: The curve, once it is measured.
        found: What the method told of its choice.
    """

    tried: Candidates
    objective: Objective | None
    both: bool
    always: bool
    points: int | None
    curve: Curve | None = field(default=None, init=False)
    found: dict[str, Any] = field(default_factory=dict, init=False)

    def decide(self) -> Outcome:
        """Put the fused weights into the module; return how good they are and whether to keep them."""
        before = None if self.objective is None else self.tried.measure(self.objective)
        found = self._barrier()
        settled, score = self._settled(self.tried.fused(self.found))
        if "members" in self.found:
            settled = {"taken": len(self.found["members"]), **settled}
        if self.objective is None or before is None:
            return {**settled, "kept": True}
        score = self.tried.measure(self.objective) if score is None else score
        return {
            "metric_before": self.objective.metric(before),
            **settled,
            "metric_fused": self.objective.metric(score),
            "kept": self.always or not_worse(score, before),
            **found,
        }

    def _barrier(self) -> Outcome:
        """Measure the curve, if one is wanted, and return its barrier."""
        if self.objective is None or self.points is None:
            return {}
        if (count := len(self.tried.shelf.kept)) < 2:
            text = f"{self.tried.name}: there is no curve: it needs 2 snapshots, got {count}"
            warn(self.tried.weights.trainer, text)
            return {}
        self.curve = RunCurve(self.tried, self.objective).measured(self.points)
        return {"barrier": self.curve.barrier}

    def _settled(self, model: Model) -> tuple[Outcome, float | None]:
        """Put ``model`` in with the statistics that stay; return what was measured, and its score."""
        by = self.objective or self.tried.target
        if by is None or not (self.both and learning_batchnorms(self.tried.weights.module)):
            self.tried.settle(model)
            return {}, None
        self.tried.weights.put(model)
        as_fused = self.tried.measure(by)
        reestimated = self.tried.score(by, model)
        anew = not_worse(reestimated, as_fused)
        if not anew:
            self.tried.weights.put(model)
        metrics: Outcome = {
            "metric_as_fused": by.metric(as_fused),
            "metric_reestimated": by.metric(reestimated),
            "reestimated": anew,
        }
        return metrics, reestimated if anew else as_fused

    def tell(self, outcome: Outcome, path: Path | None, name: str) -> None:
        """Log and print what came of it; the curve is shown, whatever was decided.

        Args:
            outcome: That.
            path: Of the file of weights, if one was written.
            name: Who tells.

        Raises:
            OSError: If the picture of the curve cannot be written.
        """
        trainer, prefix = self.tried.weights.trainer, self.tried.name
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in trainer.loggers:
            logger.log_metrics({f"{prefix}/{key}": float(value) for key, value in outcome.items()}, step=step)
        told = [f"{k} {v:.4g}" if type(v) is float else f"{k} {v}" for k, v in outcome.items()]
        told += [str(path)] if path is not None else []
        if self.curve is not None and self.objective is not None:
            told.append(RunCurve(self.tried, self.objective).show(self.curve, step=step))
        say(trainer, f"{name}: {', '.join(told)}")

    def write(self, about: dict[str, Any]) -> Path:
        """Write what the module holds as a checkpoint of weights, with how it came about; return its path.

        Args:
            about: Settings and outcome; plain values.

        Raises:
            OSError: If it cannot be written.
        """
        tried, weights = self.tried, self.tried.weights
        models = [] if tried.base is None else [tried.base.described()]
        models += [{"name": snapshot.name, "size": snapshot.size} for snapshot in tried.shelf.kept]
        by = {} if self.objective is None else {"monitor": self.objective.monitor}
        curve = {} if self.curve is None else {"curve": self.curve.plain()}
        about = {KEY: provenance(tried.method, models, self.found), tried.name: {**about, **by, **curve}}
        path = files.checkpoint_folder(weights.trainer) / "fused.ckpt"
        return files.save_weights(weights.trainer, path, lambda: weights.gather(weights.tensors()), about)
