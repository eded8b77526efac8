"""Run in each of two processes: python -m tests.distributed.means."""

from __future__ import annotations

import torch
import torch.distributed as dist

from lightning_tricks.core.process_means import average_over_processes_


def main() -> None:
    """Average numbers that differ between the processes."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    single = torch.tensor([[1.0, 5.0], [2.0, 0.0]]) * (1 + 2 * rank)
    strided = torch.full((2, 3), float(rank)).t()
    double, half = torch.tensor(4.0 * rank, dtype=torch.float64), torch.tensor([60000.0], dtype=torch.float16)
    average_over_processes_([single, strided, double, half])
    assert single.tolist() == [[2.0, 10.0], [4.0, 0.0]]
    assert torch.equal(strided, torch.full((3, 2), 0.5))
    assert double.item() == 2.0
    assert half.item() == 60000.0  # no sum of it fits its type


if __name__ == "__main__":
    main()
