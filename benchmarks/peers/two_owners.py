"""Two that decide one thing: the rate, the threshold of clipping, or the weights to evaluate.

Judged by whether the run is refused; else by whether what each was asked for is what happened.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch.callbacks as pl
from lightning.pytorch import Callback
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.micro_batches import Rates
from benchmarks.peers.small import Net, fitted, sgd

QUESTION = "Where two decide the same thing, does anyone say so?"
SHARE = 0.5


def falling(epoch: int) -> float:
    """Return a share of the base rate."""
    return SHARE**epoch


def scheduled(module: Any) -> Any:
    """Return an optimizer with the module's rate, and a schedule of the module's own."""
    optimizer = sgd(module, lr=getattr(module, "lr", 0.1))
    return [optimizer], [{"scheduler": LambdaLR(optimizer, falling), "interval": "step"}]


def refused(*callbacks: Callback, optimizers: Any = sgd, **settings: Any) -> Verdict:
    """Train with two that must be told apart."""
    fitted(*callbacks, module=Net(optimizers), **settings)
    return judged(False, "trained with both")


class Tuned(Net):
    """Has the attribute that the finder sets."""

    lr = 0.1


def found() -> Verdict:
    """Lightning's finder, whose suggestion is to be the base rate of the schedule."""
    finder, rates, module = pl.LearningRateFinder(num_training_steps=50), Rates(), Tuned(scheduled)

    class Begin(Callback):
        """Forgets the rates of the search."""

        def on_train_start(self, *_: Any) -> None:
            rates.seen.clear()

    fitted(Begin(), rates, finder, module=module, max_epochs=1, batches=60)
    suggested = finder.optimal_lr.suggestion()
    wanted, seen = (
        [f"{rate:.2g}" for rate in each] for each in ([suggested, suggested * SHARE], rates.seen[:2])
    )
    return judged(wanted == seen, f"suggested {wanted[0]}; rates of the first steps {', '.join(seen)}")


def opening() -> Verdict:
    """Lightning's fine-tuning, beside a schedule for all rates."""
    rates: list[float] = []

    class Backbones(Callback):
        """Keeps the backbone's rate."""

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            own = module.backbone[0].weight
            rates.extend(g["lr"] for g in optimizer.param_groups if any(p is own for p in g["params"]))

    open_ = pl.BackboneFinetuning(
        unfreeze_backbone_at_epoch=1, lambda_func=lambda _: 1.5, backbone_initial_lr=0.02
    )
    fitted(Backbones(), open_, module=Net(annealed), max_epochs=4)
    alone = [0.02 * 1.5 ** (step // 5) for step in range(15)]
    both = [rate * 0.9**step for step, rate in enumerate(alone)]
    same = max(sum(abs(a - b) < 1e-9 for a, b in zip(rates, wanted, strict=True)) for wanted in (alone, both))
    return judged(same == 15, f"{same} of 15 steps had the rate of either, or of both multiplied")


def annealed(module: nn.Module) -> Any:
    """Return an optimizer and a schedule that can bear another group."""
    from torch.optim.lr_scheduler import ExponentialLR

    optimizer = sgd(module)
    return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step"}]


CASES = [
    Case(
        "`WarmupCosine` and a schedule of the module",
        lambda: refused(lt.WarmupCosine(), optimizers=scheduled),
    ),
    Case("`GradientClip` and `gradient_clip_val`", lambda: refused(lt.GradientClip(), gradient_clip_val=1.0)),
    Case("`EMAWeights` and `SWAWeights`", lambda: refused(lt.EMAWeights(), lt.SWAWeights())),
    Case(
        "Lightning, two `EMAWeightAveraging`",
        lambda: refused(pl.EMAWeightAveraging(), pl.EMAWeightAveraging(decay=0.9)),
        "lightning",
    ),
    Case("Lightning `LearningRateFinder` and a schedule", found, "lightning"),
    Case("Lightning `BackboneFinetuning` and a schedule", opening, "lightning"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
