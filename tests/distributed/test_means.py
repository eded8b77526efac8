"""Means over processes: of all types at once, and nothing where there is one process."""

from __future__ import annotations

import torch

from lightning_tricks.core.process_means import average_over_processes_
from tests.distributed.launch import launch


def test_one_process_is_left_alone() -> None:
    tensor = torch.tensor([1.0, 2.0])
    average_over_processes_([tensor])
    assert tensor.tolist() == [1.0, 2.0]


def test_two_processes_share_their_means() -> None:
    launch("tests.distributed.means")
