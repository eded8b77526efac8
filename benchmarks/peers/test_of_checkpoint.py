"""``trainer.test(ckpt_path=...)`` by the Trainer that has just fitted, of a checkpoint with an average.

Judged by the weights that the test saw: they must be those that the validation before the checkpoint saw.
"""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.small import Net, Validated, farthest, floating
from tests.toys import Loader, trainer

QUESTION = "Does `trainer.test(ckpt_path=...)` after `fit` test the average that was validated?"


def asked(callback: Callback) -> Verdict:
    """Fit, then test the last checkpoint."""
    seen, module = Validated(), Net()
    keep = ModelCheckpoint(Path("kept").absolute(), save_last=True)
    run = trainer(callback, seen, keep)
    run.fit(module, Loader(), Loader(2, seed=9, fixed=True))
    validated = floating(seen.seen)
    run.test(module, Loader(2, seed=9, fixed=True), ckpt_path=keep.last_model_path, verbose=False)
    off = farthest(validated, floating(seen.seen))
    return judged(off == 0.0, f"{off:.2f} from those validated" if off else "those validated")


CASES = [
    Case("`EMAWeights`", lambda: asked(lt.EMAWeights(decay=0.5))),
    Case("`SWAWeights`", lambda: asked(lt.SWAWeights(start=1, every=2))),
    Case("Lightning `EMAWeightAveraging`", lambda: asked(EMAWeightAveraging(decay=0.5)), "lightning"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
