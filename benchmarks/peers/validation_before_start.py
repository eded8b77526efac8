"""An average that begins later than the run ends, or than its first validations.

Judged by the weights that validation saw and those that the run leaves, which must be the trained ones.
"""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging

import lightning_tricks as lt
from benchmarks.peers.beside import Beside, Diffusers, EMAPytorchs, Timms
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.small import Live, Validated, farthest, fitted, floating
from tests.toys import weights

QUESTION = "Before an average begins, are the trained weights validated and kept?"


def asked(callback: Callback, *, validates: bool = True) -> Verdict:
    """Run 15 steps with an average from step 100 on; ``validates`` if the callback swaps it in."""
    live, validated = Live(), Validated()
    left = floating(weights(fitted(live, callback, validated)))
    trained, start = floating(live.seen[-1]), floating(live.seen[0])
    off = farthest(left, trained)
    seen = f"left: {off:.2f} from the trained weights, {farthest(left, start):.2f} from the initial ones"
    if validates:
        off = max(off, farthest(floating(validated.seen), trained))
    return judged(off == 0.0, "the trained ones" if not off else seen)


def late(kind: Callable[..., object], **options: int) -> Verdict:
    """Ask one that is kept beside the run, whose average is copied in at the end."""
    return asked(Beside(kind, 0.9, **options), validates=False)


CASES = [
    Case("`EMAWeights(start=100)`", lambda: asked(lt.EMAWeights(decay=0.9, start=100))),
    Case("`SWAWeights(start=100)`", lambda: asked(lt.SWAWeights(start=100))),
    Case(
        "Lightning `EMAWeightAveraging(update_starting_at_step=100)`",
        lambda: asked(EMAWeightAveraging(decay=0.9, update_starting_at_step=100)),
        "lightning",
    ),
    Case("timm `ModelEmaV3`", lambda: late(Timms, update_after_step=100), "timm"),
    Case("ema-pytorch `EMA`", lambda: late(EMAPytorchs, update_after_step=100), "ema-pytorch"),
    Case("diffusers `EMAModel`", lambda: late(Diffusers, update_after_step=100, min_decay=0.0), "diffusers"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
