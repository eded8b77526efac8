"""A backbone that opens after an epoch, in a run that is broken off and resumed by a new Trainer.

The run of three epochs of five batches stops after its 3rd (before the opening), its 5th (the last before it)
or its 8th batch. Judged by the weights that the uninterrupted run ends with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.openings import lightnings, ours, scheduled
from benchmarks.peers.small import Net, farthest, fitted, resumed
from tests.toys import weights

QUESTION = "Is fine-tuning the same when it is broken off and resumed, before and after the backbone opens?"
STOPS = (3, 5, 8)


def told(whole: dict[str, Any], again: Callable[[], Any]) -> str:
    """Return how far the resumed run ended from the other, or what stopped it."""
    try:
        distance = farthest(whole, weights(again()))
    except Exception as error:  # whatever stops a peer is the answer
        return f"{type(error).__name__}: {error}"
    return f"{distance:.1e} apart" if distance else "equal"


def verdict(found: dict[int, str]) -> Verdict:
    """Judge all stops."""
    right = set(found.values()) == {"equal"}
    return judged(
        right, "equal to the bit" if right else "; ".join(f"batch {n}: {s}" for n, s in found.items())
    )


def asked(callbacks: Callable[[], list[Callback]]) -> Verdict:
    """Compare the resumed runs with the other."""

    def build() -> tuple[Net, list[Callback]]:
        return Net(), callbacks()

    whole = weights(fitted(*callbacks()))
    return verdict({stop: told(whole, partial(resumed, build, Path(), after=stop)) for stop in STOPS})


class Logging(Net):
    """Logs the loss, which a checkpoint within an epoch needs."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss."""
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


def of_its_own_checkpoints() -> Verdict:
    """Ask finetuning-scheduler, which resumes from the checkpoints of its FTSCheckpoint alone."""
    from finetuning_scheduler import FTSCheckpoint

    def kept() -> Callback:
        name = {"filename": "{step}", "monitor": "loss", "save_top_k": -1}
        return FTSCheckpoint(Path("kept").absolute(), every_n_train_steps=1, **name)

    def resumed_at(stop: int) -> Any:
        return fitted(*scheduled(), kept(), module=Logging(), ckpt_path=Path(f"kept/step={stop}.ckpt"))

    whole = weights(fitted(*scheduled(), kept(), module=Logging()))
    return verdict({stop: told(whole, partial(resumed_at, stop)) for stop in STOPS})


CASES = [
    Case("`ProgressiveUnfreeze`", lambda: asked(ours)),
    Case("Lightning `BackboneFinetuning`", lambda: asked(lightnings), "lightning"),
    Case("finetuning-scheduler, `FTSCheckpoint`", of_its_own_checkpoints, "finetuning-scheduler"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
