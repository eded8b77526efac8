"""The mean of two of Lightning's checkpoints of a network with BatchNorm, by names as they stand there.

Judged by the mean of each floating tensor in double precision, and by counters, which must stay whole
numbers.
"""

from __future__ import annotations

import torch

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.merging import Model, merged, saved
from benchmarks.peers.small import Net, farthest, fitted, floating
from tests.toys import weights

QUESTION = "Can checkpoints of a network with BatchNorm be averaged?"


def models() -> list[Model]:
    """Return the weights of a network after one epoch and after two."""
    return [weights(fitted(module=Net(), max_epochs=epochs)) for epochs in (1, 2)]


def verdict(found: Model, given: list[Model]) -> Verdict:
    """Compare with the mean."""
    wanted = {name: sum(one[name].double() for one in given) / len(given) for name in floating(given[0])}
    spoilt = [name for name, value in found.items() if not bool(value.isfinite().all())]
    if spoilt:
        return judged(False, f"{', '.join(spoilt)} is {found[spoilt[0]].item()} of {found[spoilt[0]].dtype}")
    off = farthest({name: found[name] for name in wanted}, wanted)
    whole = all(found[name].dtype == value.dtype for name, value in given[0].items())
    return judged(off < 1e-6 and whole, f"{off:.0e} from the mean; counters {'' if whole else 'not '}whole")


def ours() -> Verdict:
    """Fuse the checkpoints."""
    given = models()
    return verdict(dict(lt.fuse(saved(given, ".ckpt"))), given)


def mergekits(suffix: str) -> Verdict:
    """Merge them, or the same in another form."""
    given = models()
    return verdict(merged(saved(given, suffix), "linear"), given)


def torchs() -> Verdict:
    """Average by torch's model, which counts."""
    given, module = models(), Net()
    average = torch.optim.swa_utils.AveragedModel(module.backbone, use_buffers=True)
    for one in given:
        module.load_state_dict(one)
        average.update_parameters(module.backbone)
    backbone = [
        {n.removeprefix("backbone."): v for n, v in one.items() if n.startswith("backbone.")} for one in given
    ]
    return verdict(dict(average.module.state_dict()), backbone)


CASES = [
    Case("`fuse` of .ckpt", ours),
    Case("torch `AveragedModel(use_buffers=True)` of loaded modules", torchs, "torch"),
    Case("mergekit `linear` of .ckpt", lambda: mergekits(".ckpt"), "mergekit"),
    Case("mergekit `linear` of .safetensors", lambda: mergekits(".safetensors"), "mergekit"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
