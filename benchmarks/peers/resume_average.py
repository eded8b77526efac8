"""An average of weights in a run that is broken off in mid-epoch, and resumed by a new Trainer.

The run of three epochs of five batches stops after its 8th; its data go on where they were. Judged by the
weights that the uninterrupted run ends with.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch.callbacks as pl
from lightning.pytorch import Callback

import lightning_tricks as lt
from benchmarks.peers.beside import KINDS, Beside
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.small import Net, farthest, fitted, resumed
from tests.toys import weights

QUESTION = "Is an average the same when the run is broken off in mid-epoch and resumed?"
DECAY = 0.9


def asked(callback: Callable[[], Callback]) -> Verdict:
    """Compare the resumed run with the other; each leaves the average in the module."""
    whole = weights(fitted(callback()))
    with tempfile.TemporaryDirectory() as folder:
        again = weights(resumed(lambda: (Net(), [callback()]), Path(folder), after=8))
    distance = farthest(whole, again)
    return judged(distance == 0.0, f"{distance:.1e} apart" if distance else "equal to the bit")


lightnings_swa = partial(pl.StochasticWeightAveraging, 0.05, swa_epoch_start=1, annealing_epochs=1)
CASES = [
    Case("`EMAWeights`", lambda: asked(lambda: lt.EMAWeights(decay=DECAY))),
    Case("`SWAWeights`", lambda: asked(lambda: lt.SWAWeights(start=3, every=2, lr=0.05))),
    Case(
        "Lightning `EMAWeightAveraging`",
        lambda: asked(lambda: pl.EMAWeightAveraging(decay=DECAY)),
        "lightning",
    ),
    Case("Lightning `StochasticWeightAveraging`", lambda: asked(lightnings_swa), "lightning"),
    *[
        Case(who, lambda kind=kind: asked(lambda: Beside(kind, DECAY)), peer)
        for who, (peer, kind) in KINDS.items()
    ],
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
