import pytest
import torch

from lightning_tricks.core.tensors import by_kind, copy_, gradients_of, lerp_, swap_, weighted_sum


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
    swap_([a], [b])
    assert torch.equal(a, second) and torch.equal(b, first)


def test_empty_lists_are_fine() -> None:
    lerp_([], [], 0.5)
    copy_([], [])
    swap_([], [])


def test_weighted_sum_of_halves_is_computed_wide() -> None:
    # In bfloat16, 256 + 1 is 256 again: eight additions of 1 would be lost.
    tensors = [torch.tensor([256.0], dtype=torch.bfloat16)]
    tensors += [torch.tensor([1.0], dtype=torch.bfloat16)] * 8
    assert weighted_sum(tensors, [1.0] * 9).item() == 264.0


def test_gradients_are_read_from_the_groups_anew() -> None:
    one, two, three = (torch.zeros(1, requires_grad=True) for _ in range(3))
    optimizer = torch.optim.SGD([one, two], lr=0.1)
    one.grad, three.grad = torch.full((1,), 1.0), torch.full((1,), 3.0)
    assert gradients_of(optimizer, None) == [1.0]
    optimizer.add_param_group({"params": [three]})
    assert gradients_of(optimizer, None) == [1.0, 3.0]
    assert gradients_of(optimizer, {three}) == [3.0]


def test_tensors_are_listed_by_type_in_their_order() -> None:
    a, b, c = torch.zeros(1), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(3)
    assert [[len(t) for t in group] for group in by_kind([a, b, c])] == [[1, 3], [2]]
