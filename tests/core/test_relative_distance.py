"""How far two sets of tensors are apart, as a share of the second one's norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_tricks.core import norms
from lightning_tricks.core.norms import relative_distance


def by_scipy(firsts: list[Tensor], seconds: list[Tensor]) -> float:
    from scipy.linalg import norm

    first, second = (
        torch.cat([each.flatten().double() for each in those]).numpy() for those in (firsts, seconds)
    )
    return float(norm(first - second) / norm(second))


@pytest.mark.parametrize("chunk", [1, 7, 2**22])
def test_it_is_that_of_all_entries_as_one_vector(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(norms, "CHUNK", chunk)
    shapes: list[tuple[int, ...]] = [(), (3,), (5, 4), (0, 3), (1, 9), (6, 2, 3, 3)]
    seconds = [torch.randn(shape) for shape in shapes]
    seconds[-1] = seconds[-1].to(memory_format=torch.channels_last)
    firsts = [each + 0.01 * torch.randn(each.shape) for each in seconds]
    found = relative_distance([(one, other, ()) for one, other in zip(firsts, seconds, strict=True)])
    assert found.shape == ()
    assert float(found) == pytest.approx(by_scipy(firsts, seconds), rel=1e-5)


def test_types_may_be_mixed_and_the_wider_counts() -> None:
    seconds = [torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([2.0], dtype=torch.float64)]
    firsts = [torch.tensor([1.0, 2.001]), torch.tensor([2.0], dtype=torch.float64)]
    found = relative_distance([(one, other, ()) for one, other in zip(firsts, seconds, strict=True)])
    assert float(found) == pytest.approx(0.001 / 3, rel=1e-3)
    phase = torch.tensor([3.0 + 4.0j])
    assert float(relative_distance([(phase + 0.5j, phase, ())])) == pytest.approx(0.1)


def test_what_no_16_bits_hold_is_measured_in_32() -> None:
    live = torch.full((4,), 300.0, dtype=torch.float16)  # whose square is infinite there
    assert float(relative_distance([(live.float() * 1.5, live, ())])) == pytest.approx(0.5)


def test_no_full_copy_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "CHUNK", 100)
    sizes: list[int] = []
    own = torch.linalg.vector_norm
    monkeypatch.setattr(
        torch.linalg, "vector_norm", lambda each, *rest: sizes.append(each.numel()) or own(each, *rest)
    )
    big = torch.randn(50, 30)
    relative_distance([(big + 1, big, ())])
    assert max(sizes) == 90
