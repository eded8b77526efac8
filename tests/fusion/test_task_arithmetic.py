from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_tricks.fusion.task_arithmetic import TaskArithmetic, task_arithmetic


@pytest.mark.parametrize("weights", [None, [0.5, -1.0, 2.0]])
def test_is_numpys_sum(weights):
    base, *models = np.random.default_rng(0).standard_normal((4, 5, 8))
    changes = [model - base for model in models]
    wanted = base + 0.4 * np.tensordot(weights or [1.0, 1.0, 1.0], changes, axes=1)
    fused = task_arithmetic(
        {"w": torch.tensor(base)}, [{"w": torch.tensor(m)} for m in models], scale=0.4, weights=weights
    )
    np.testing.assert_allclose(fused["w"], wanted, atol=1e-14)


def test_by_hand():
    base, model = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 2.0])}
    assert task_arithmetic(base, [model])["w"].tolist() == [3.0, 2.0]
    assert task_arithmetic(base, [model, model])["w"].tolist() == [5.0, 2.0]
    assert task_arithmetic(base, [model], weights=[-1.0])["w"].tolist() == [-1.0, 2.0]


def test_the_base_comes_first_and_its_file_is_only_named():
    assert TaskArithmetic(base="pretrained.ckpt").base == "pretrained.ckpt"
    assert TaskArithmetic().base is None and TaskArithmetic(weights=(1.0, 1.0)).count == 3
    assert TaskArithmetic().entrywise and TaskArithmetic().least == 2
