"""Accumulation of gradients over four micro-batches, in runs of three epochs of eight.

Judged by the run without accumulation and two batches an epoch, which makes as many optimizer steps: both
must have the same rates, step by step. Averages are judged by the sum by hand over the weights after each
step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch.callbacks as pl
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LinearLR, OneCycleLR, StepLR

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.small import Live, Net, ema_of, farthest, fitted, floating, sgd
from tests.toys import weights

QUESTION = "With accumulated gradients, are schedules and averages counted in optimizer steps?"
DECAY = 0.5


class Rates(Callback):
    """Keeps the rate of each optimizer step."""

    def __init__(self) -> None:
        """Begin without."""
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


class Scheduled(Net):
    """With a scheduler as Lightning documents it."""

    def __init__(self, scheduler: Callable[..., Any], **how: Any) -> None:
        """Take ``scheduler(optimizer, trainer)`` and what Lightning is told of it."""
        super().__init__()
        self.scheduler, self.how = scheduler, {"interval": "step", **how}

    def configure_optimizers(self) -> Any:
        """Return the dictionary."""
        optimizer = sgd(self)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler(optimizer, self.trainer), **self.how},
        }


def rates(*callbacks: Callback, module: LightningModule, accumulated: bool, by: str) -> list[float]:
    """Return the rates of a run's steps, accumulated ``by`` the Trainer's option or Lightning's callback."""
    seen, settings = Rates(), {}
    if accumulated and by == "option":
        settings = {"accumulate_grad_batches": 4}
    elif accumulated:
        callbacks = (pl.GradientAccumulationScheduler({0: 4}), *callbacks)
    fitted(seen, *callbacks, module=module, batches=8 if accumulated else 2, **settings)
    return seen.seen


def same_rates(
    callbacks: Callable[[], list[Callback]], module: Callable[[], Net] = Net, by: str = "option"
) -> Verdict:
    """Compare the rates of both runs."""
    runs = [rates(*callbacks(), module=module(), accumulated=accumulated, by=by) for accumulated in (1, 0)]
    found, wanted = ([round(rate, 4) for rate in run] for run in runs)
    return judged(found == wanted, f"rates {found}" if found == wanted else f"{found}, not {wanted}")


def averaged(callback: Callback, *, begins: int = 0) -> Verdict:
    """Compare the average with the sum by hand, from the weights after the step ``begins`` on."""
    live = Live()
    left = floating(weights(fitted(live, callback, batches=8, accumulate_grad_batches=4)))
    names = dict(Net().named_parameters())
    stepped = [{name: one[name] for name in names} for one in live.seen[4 * begins :: 4]]
    off = farthest(ema_of(stepped, DECAY), {name: left[name] for name in names})
    return judged(off < 1e-6, f"{off:.0e} from the sum by hand")


def warming(optimizer: Any, trainer: Trainer) -> Any:
    """Return a warm-up over four steps."""
    return LinearLR(optimizer, 0.25, total_iters=4)


def halving(optimizer: Any, trainer: Trainer) -> Any:
    """Return a rate that each call halves."""
    return StepLR(optimizer, 1, gamma=0.5)


def one_cycle(optimizer: Any, trainer: Trainer) -> Any:
    """Return a cycle over the run's length as Lightning estimates it."""
    return OneCycleLR(optimizer, 0.1, total_steps=trainer.estimated_stepping_batches)


CASES = [
    Case("`WarmupCosine`", lambda: same_rates(lambda: [lt.WarmupCosine(warmup=2)])),
    Case(
        "`WarmupCosine` and `GradientAccumulationScheduler`",
        lambda: same_rates(lambda: [lt.WarmupCosine(warmup=2)], by="callback"),
    ),
    Case("`EMAWeights`", lambda: averaged(lt.EMAWeights(decay=DECAY, decay_warmup=False))),
    Case(
        "Lightning `EMAWeightAveraging`",
        lambda: averaged(pl.EMAWeightAveraging(decay=DECAY), begins=1),
        "lightning",
    ),
    Case(
        'Lightning, `LinearLR` with `interval="step"`',
        lambda: same_rates(list, lambda: Scheduled(warming)),
        "lightning",
    ),
    Case(
        'Lightning, `interval="step", frequency=2`',
        lambda: same_rates(list, lambda: Scheduled(halving, frequency=2)),
        "lightning",
    ),
    Case(
        "Lightning, `OneCycleLR(total_steps=trainer.estimated_stepping_batches)`",
        lambda: same_rates(list, lambda: Scheduled(one_cycle)),
        "lightning",
    ),
    Case(
        "the same and `GradientAccumulationScheduler`",
        lambda: same_rates(list, lambda: Scheduled(one_cycle), by="callback"),
        "lightning",
    ),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
