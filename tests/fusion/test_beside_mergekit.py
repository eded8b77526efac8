"""Fused tensors beside what mergekit 0.1.5 made of the same ones, with torch 2.13."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import lightning_tricks as lt
from lightning_tricks.fusion.methods import FusionMethod


def wave(index: int) -> Tensor:
    """Return the tensor of a model; three decimals, so that every platform has the same."""
    return torch.tensor([round(math.sin(step * (index + 1) + index), 3) for step in range(12)])


WANTED: list[tuple[FusionMethod, int, list[float]]] = [
    (
        lt.Slerp(0.3),
        2,
        [
            *(0.389421671628952, 0.8236626982688904, 0.3756311535835266, 0.4313682019710541),
            *(-0.4918511211872101, -1.327825903892517, -0.05710943043231964, 0.8934307098388672),
            *(0.44684526324272156, 0.44097861647605896, -0.10298347473144531, -1.293488621711731),
        ],
    ),
    (
        lt.TaskArithmetic(scale=0.4, weights=(0.5, 1.0, 2.0)),
        4,
        [
            *(0.6446000337600708, -0.16620010137557983, -0.9598000645637512, 0.19499994814395905),
            *(0.9016000628471375, -0.8776000142097473, 1.3256001472473145, -0.7944000363349915),
            *(-0.6249999403953552, 0.3707999885082245, -0.060200005769729614, 0.15880000591278076),
        ],
    ),
    (
        lt.Ties(0.5, scale=0.8, weights=(0.5, 1.0, 2.0)),
        4,
        [
            *(0.6728000044822693, -0.3056667447090149, -0.6116400361061096, -0.7718000411987305),
            *(0.1907714605331421, -0.9589999914169312, 0.697533369064331, -0.3096666932106018),
            *(-0.22988003492355347, 0.41200000047683716, 0.40826666355133057, -0.1008000373840332),
        ],
    ),
    (
        lt.Breadcrumbs(0.5, gamma=0.1, weights=(0.5, 1.0, 2.0)),
        4,
        [
            *(0.4205000102519989, 0.4909999966621399, -0.025000035762786865, -1.0, 3.389500141143799),
            *(-0.9589999914169312, 3.7325003147125244, -2.9679999351501465, -1.8450000286102295),
            *(0.4399999976158142, 1.2415000200271606, 1.247999906539917),
        ],
    ),
    (
        lt.ModelStock(),
        4,
        [
            *(0.47736024856567383, 0.16345645487308502, -0.024263232946395874, 0.11171719431877136),
            *(0.20832283794879913, -0.9413293600082397, 0.5101211667060852, 0.007981926202774048),
            *(0.0819903016090393, 0.21358375251293182, 0.008334308862686157, -0.5329897403717041),
        ],
    ),
]


@pytest.mark.parametrize(("method", "count", "wanted"), WANTED)
def test_it_is_mergekits(method: FusionMethod, count: int, wanted: list[float]) -> None:
    fused = method.fuse([{"w": wave(index)} for index in range(count)])
    torch.testing.assert_close(fused["w"], torch.tensor(wanted), rtol=0, atol=1e-6)
