"""Two checkpoints, one of which holds an entry that is not a number.

Judged by whether the mean holds it too: who fuses must learn of it before it is shipped.
"""

from __future__ import annotations

import torch

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.merging import Model, merged, saved

QUESTION = "Is an entry that is not a number found when checkpoints are fused?"


def models() -> list[Model]:
    """Return two, the second spoilt."""
    whole, spoilt = ({"w": torch.ones(3, 4) * value} for value in (1.0, 2.0))
    spoilt["w"][1, 2] = torch.nan
    return [whole, spoilt]


def verdict(found: Model) -> Verdict:
    """Look for it."""
    count = int(found["w"].isnan().sum())
    return judged(not count, f"{count} of 12 entries of the mean is not a number")


def torchs() -> Verdict:
    """Average by torch's model."""
    module = torch.nn.Linear(4, 3, bias=False)
    average = torch.optim.swa_utils.AveragedModel(module)
    for one in models():
        module.load_state_dict({"weight": one["w"]})
        average.update_parameters(module)
    return verdict({"w": average.module.weight.detach()})


CASES = [
    Case("`fuse`", lambda: verdict(dict(lt.fuse(saved(models()))))),
    Case("torch `AveragedModel`", torchs, "torch"),
    Case("mergekit `linear`", lambda: verdict(merged(saved(models()), "linear")), "mergekit"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
