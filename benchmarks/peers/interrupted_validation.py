"""An error, or Ctrl-C, in the middle of a validation that sees the average.

Judged by the weights in the module afterwards, which must be the live ones: those that a checkpoint written
on the way out saves as such, and that a notebook's next cell trains.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.small import Live, Net, farthest, fitted, floating
from tests.toys import weights

QUESTION = "After an error in validation, are the live weights back in the module?"


class Breaks(Callback):
    """Raises in the first batch of the third validation."""

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.current_epoch == 2:
            raise InterruptedError


class TorchEMAs(Net):
    """https://github.com/fadel/pytorch_ema#example: ``average_parameters`` around the evaluation."""

    def on_fit_start(self) -> None:
        """Begin."""
        from torch_ema import ExponentialMovingAverage

        self.average = ExponentialMovingAverage(self.parameters(), decay=0.5)

    def on_train_batch_end(self, *_: Any) -> None:
        """Update after each step."""
        self.average.update()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate the average."""
        with self.average.average_parameters():
            super().validation_step(batch, batch_idx)
            if self.trainer.current_epoch == 2:
                raise InterruptedError


def asked(*callbacks: Callback, module: LightningModule | None = None) -> Verdict:
    """Break the third validation, and look."""
    live, module = Live(), module or Net()
    try:
        fitted(live, *callbacks, Breaks(), module=module)
    except InterruptedError:
        off = farthest(floating(live.seen[-1]), floating(weights(module)))
        return judged(off == 0.0, f"{off:.2f} from the live weights" if off else "the live ones")
    raise AssertionError("validation did not break")


CASES = [
    Case("`EMAWeights`", lambda: asked(lt.EMAWeights(decay=0.5))),
    Case("`SWAWeights`", lambda: asked(lt.SWAWeights(start=1, every=1))),
    Case("Lightning `EMAWeightAveraging`", lambda: asked(EMAWeightAveraging(decay=0.5)), "lightning"),
    Case("torch_ema's `average_parameters`", lambda: asked(module=TorchEMAs()), "torch-ema"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
