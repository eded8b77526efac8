"""Fisher information for elastic weight consolidation (EWC), from batches of 1, 8 and 32 samples.

Judged by the mean over samples of squared gradients, one backward pass each, in double precision:
arXiv:1612.00796 weighs its penalty by it, so that the penalty must not depend on the size of the batches.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.parts import cut

QUESTION = "Is Fisher information the same whatever the size of the batches?"
SIZES = (1, 8, 32)


def network() -> nn.Module:
    """Return a small one."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def data() -> TensorDataset:
    """Return 64 samples."""
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(64, 4, generator=generator), torch.randint(3, (64,), generator=generator)
    )


def by_hand() -> float:
    """Return the sum of the information over all weights."""
    module, total = copy.deepcopy(network()).double(), 0.0
    for x, y in data():
        loss = cross_entropy(module(x.double()[None]), y[None])
        total += sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(module.parameters())))
    return total / 64


def verdict(sums: list[float]) -> Verdict:
    """Compare the sum over all weights, by size of batch."""
    shares = [one / by_hand() for one in sums]
    told = ", ".join(f"{share:.3f} with {size}" for size, share in zip(SIZES, shares, strict=True))
    return judged(all(abs(share - 1) < 1e-3 for share in shares), f"of the sum by hand: {told}")


def ours(size: int) -> float:
    """Return ours."""

    def loss(module: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(module(batch[0]), batch[1])

    found = lt.fisher_information(network(), DataLoader(data(), batch_size=size), loss)
    return sum(float(value.sum()) for value in found.values())


def avalanches(size: int) -> float:
    """Return that of Avalanche's ``EWCPlugin``."""
    utils = cut(
        "avalanche-lib", "avalanche/training/utils.py", "ParamData", "zerolike_params_dict", torch=torch
    )
    plugin = cut(
        "avalanche-lib",
        "avalanche/training/plugins/ewc.py",
        "EWCPlugin",
        torch=torch,
        SupervisedPlugin=object,
        DataLoader=DataLoader,
        defaultdict=defaultdict,
        zerolike_params_dict=utils["zerolike_params_dict"],
        avalanche_forward=lambda module, x, _: module(x),
    )["EWCPlugin"]
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    importances = plugin(ewc_lambda=1.0).compute_importances(
        module, nn.CrossEntropyLoss(), optimizer, data(), "cpu", size
    )
    return sum(float(one.data.sum()) for one in importances.values())


CASES = [
    Case("`fisher_information`", lambda: verdict([ours(size) for size in SIZES])),
    Case("Avalanche `EWCPlugin`", lambda: verdict([avalanches(size) for size in SIZES]), "avalanche-lib"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
