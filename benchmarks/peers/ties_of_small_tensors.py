"""TIES with a density of 0.5 over a base, on a matrix and on a tensor of one entry, such as a learnt scale.

Judged by the paper's three steps by hand, arXiv:2306.01708, section 3, for the matrix; the one change of one
entry is the largest, and stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.merging import Model, merged, saved

QUESTION = "Is TIES the paper's, on small tensors too?"


def models(*, scale: bool) -> list[Model]:
    """Return a base and two models, perhaps with a learnt scale."""
    generator = torch.Generator().manual_seed(0)
    matrices = [{"w": torch.randn(4, 6, generator=generator)} for _ in range(3)]
    return [{**one, "scale": torch.tensor([1.0 + k])} if scale else one for k, one in enumerate(matrices)]


def by_hand(base: Tensor, others: list[Tensor]) -> Tensor:
    """Trim to the larger half, elect signs, take the mean of those that agree."""
    kept = []
    for other in others:
        change = (other.double() - base.double()).flatten()
        keep = change.abs().argsort(descending=True)[: change.numel() // 2]
        kept.append(torch.zeros_like(change).index_copy(0, keep, change[keep]))
    stacked = torch.stack(kept)
    sign = stacked.sum(0).sign()
    agreed = (stacked.sign() == sign) & (stacked != 0)
    mean = torch.where(agreed, stacked, 0).sum(0) / agreed.sum(0).clamp(min=1)
    return base.double() + mean.view(base.shape)


def verdict(found: Model, given: list[Model]) -> Verdict:
    """Compare."""
    base, *others = (one["w"] for one in given)
    off = float((found["w"].double() - by_hand(base, others)).abs().max())
    seen = f"{off:.0e} from the sum by hand"
    if "scale" not in given[0]:
        return judged(off < 1e-5, seen)
    return judged(
        off < 1e-5 and float(found["scale"]) == 2.5, f"{seen}; scale {float(found['scale'])}, not 2.5"
    )


def ours(*, scale: bool) -> Verdict:
    """Fuse by ours."""
    given = models(scale=scale)
    return verdict(dict(lt.fuse(given, lt.Ties(0.5))), given)


def mergekits(*, scale: bool) -> Verdict:
    """Merge by mergekit's, whose lambda is 1."""
    given = models(scale=scale)
    return verdict(merged(saved(given), "ties", based=True, density=0.5), given)


CASES = [
    Case("`Ties(0.5)`, a matrix", lambda: ours(scale=False)),
    Case("`Ties(0.5)`, with a scale", lambda: ours(scale=True)),
    Case("mergekit `ties`, a matrix", lambda: mergekits(scale=False), "mergekit"),
    Case("mergekit `ties`, with a scale", lambda: mergekits(scale=True), "mergekit"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
