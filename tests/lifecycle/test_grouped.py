from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_tricks.lifecycle.grouped import copies_on
from tests.contract.regimes import needs_gpu


class OnGPU:
    """Stands in for a tensor of a GPU; notes what is asked of it."""

    is_cuda = True

    def __init__(self, index: int, log: list[Any]) -> None:
        self.device, self.log = torch.device("cuda", index), log

    def to(self, device: torch.device, *, non_blocking: bool) -> str:
        self.log.append("copy" if non_blocking else "waits")
        return f"copy on {device}"


def test_copies_of_gpus_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []

    def stream(device: torch.device) -> Any:
        return SimpleNamespace(synchronize=lambda: log.append(device.index))

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    tensors: Any = [OnGPU(0, log), OnGPU(1, log), OnGPU(0, log)]
    assert copies_on(torch.device("cpu"), tensors) == ["copy on cpu"] * 3
    assert log[:3] == ["copy"] * 3
    assert sorted(log[3:]) == [0, 1]


@pytest.mark.parametrize("source", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_copies_hold_the_values(source: str) -> None:
    tensors = [torch.full((2**20,), float(value), device=source) for value in range(8)]
    for _ in range(3):
        for tensor in tensors:
            tensor.add_(1.0)
        copies = copies_on(torch.device("cpu"), tensors)
        assert [float(copy.sum()) for copy in copies] == [float(tensor.sum()) for tensor in tensors]
