"""What the Trainer, Lightning's own callbacks and the module already own."""

from __future__ import annotations

from collections.abc import Iterator

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    Callback,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_tricks.core.conflicts import Claim
from lightning_tricks.lifecycle.notice import callbacks_of

__all__ = ["foreign_claims"]

# Of what follows a schedule, a metric, an opening: ours go together, those of others with none of them.
_RATES = ("lr", "lr_decay", "lr_warmup", "lr_goal")
_CALLBACKS: tuple[tuple[type[Callback], tuple[str, ...]], ...] = (
    (WeightAveraging, ("eval_weights", "final_weights")),
    (StochasticWeightAveraging, ("eval_weights", "final_weights", *_RATES)),
    (BaseFinetuning, ("requires_grad", "param_groups")),
)


def foreign_claims(trainer: Trainer, pl_module: LightningModule) -> Iterator[Claim]:
    """Yield the claims of everything in a run that is no technique of ours."""
    if trainer.gradient_clip_val is not None:
        owner = f"Trainer(gradient_clip_val={trainer.gradient_clip_val!r})"
        yield Claim("clipping", owner, None, "remove gradient_clip_val")
    name = type(pl_module).__name__
    if is_overridden("configure_gradient_clipping", pl_module):
        owner = f"{name}.configure_gradient_clipping"
        yield Claim("clipping", owner, None, "do not override configure_gradient_clipping")
    if trainer.strategy.lr_scheduler_configs:
        owner = f"the scheduler of {name}.configure_optimizers"
        remedy = "return no scheduler from configure_optimizers"
        yield from (Claim(slot, owner, None, remedy) for slot in _RATES)
    for callback in callbacks_of(trainer):
        for kind, slots in _CALLBACKS:
            if isinstance(callback, kind):
                own = type(callback).__name__
                yield from (Claim(slot, own, None, f"remove {own}") for slot in slots)
