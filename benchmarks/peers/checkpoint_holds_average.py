"""The weights-only checkpoint of a validation, and the weights that this validation saw.

Judged by its ``state_dict``, which must be those weights: whoever loads it gets what the metric stands for.
"""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch.callbacks as pl
import torch
from lightning.pytorch import Callback, LightningModule

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.small import Net, Validated, farthest, fitted, floating

QUESTION = "Does a weights-only checkpoint hold the average that its validation saw?"


def schedule_free(module: LightningModule) -> torch.optim.Optimizer:
    """Return an optimizer of the package."""
    from schedulefree import SGDScheduleFree

    return SGDScheduleFree(module.parameters(), lr=0.5)


class Switching(Net):
    """https://github.com/facebookresearch/schedule_free#how-to-use: ``eval()`` before both."""

    def __init__(self) -> None:
        """Take its optimizer."""
        super().__init__(schedule_free)

    def on_validation_model_eval(self) -> None:
        """Let both be evaluated."""
        super().on_validation_model_eval()
        self.optimizers().eval()

    def on_validation_model_train(self) -> None:
        """Let both be trained."""
        super().on_validation_model_train()
        self.optimizers().train()

    def on_train_start(self) -> None:
        """Let the optimizer be trained."""
        self.optimizers().train()


class Trained(Callback):
    """Keeps the weights that the last step left."""

    def on_train_batch_end(self, trainer: object, pl_module: LightningModule, *_: object) -> None:
        self.seen = floating({n: value.clone() for n, value in pl_module.state_dict().items()})


def asked(*callbacks: Callback, module: LightningModule | None = None) -> Verdict:
    """Save by Lightning's own callback, after each validation."""
    seen, live = Validated(), Trained()
    folder = Path("kept").absolute()
    keep = pl.ModelCheckpoint(folder, "{epoch}", monitor="val_loss", save_weights_only=True, save_top_k=-1)
    fitted(live, *callbacks, seen, keep, module=module)
    saved = floating(torch.load(folder / "epoch=2.ckpt", weights_only=True)["state_dict"])
    off, moved = farthest(saved, floating(seen.seen)), farthest(floating(seen.seen), live.seen)
    if not moved:
        return judged(False, "validated and saved the live weights")
    return judged(off == 0.0, f"{off:.2f} from those validated" if off else "those validated")


CASES = [
    Case("`EMAWeights`", lambda: asked(lt.EMAWeights(decay=0.5))),
    Case("`SWAWeights`", lambda: asked(lt.SWAWeights(start=1, every=2))),
    Case(
        "`ScheduleFree`",
        lambda: asked(lt.ScheduleFree(), module=Net(schedule_free)),
        needs="schedulefree",
    ),
    Case("Lightning `EMAWeightAveraging`", lambda: asked(pl.EMAWeightAveraging(decay=0.5)), "lightning"),
    Case(
        "Lightning `StochasticWeightAveraging`",
        lambda: asked(pl.StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=1)),
        "lightning",
        known=True,  # "... at the end of training"
    ),
    Case("schedulefree, switched around validation", lambda: asked(module=Switching()), "schedulefree"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
