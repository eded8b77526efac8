import pytest
import torch

from lightning_tricks.core.tensors import copy_, lerp_, swap_


def test_lerp_promotes_a_narrower_source() -> None:
    target, source = torch.zeros(3), torch.ones(3, dtype=torch.bfloat16)
    lerp_([target], [source], 0.25)
    assert target.tolist() == [0.25] * 3


@pytest.mark.parametrize("weight", [0.25, torch.tensor(0.25)])
def test_lerp_moves_by_the_weight(weight: float | torch.Tensor) -> None:
    target = [torch.tensor([0.0, 8.0]), torch.tensor(4.0)]
    lerp_(target, [torch.tensor([4.0, 0.0]), torch.tensor(0.0)], weight)
    assert [t.tolist() for t in target] == [[1.0, 6.0], 3.0]


def test_swap_exchanges_to_the_bit_and_keeps_the_tensors() -> None:
    first, second = torch.randn(5), torch.randn(5)
    a, b = first.clone(), second.clone()
    swap_(a, b)
    assert torch.equal(a, second) and torch.equal(b, first)


def test_empty_lists_are_fine() -> None:
    lerp_([], [], 0.5)
    copy_([], [])
