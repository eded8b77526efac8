import torch
from torch import nn

from lightning_tricks.core.gradients import gradients_of


def test_gradients_are_read_from_the_groups_anew() -> None:
    one, two, three = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    optimizer = torch.optim.SGD([one, two], lr=0.1)
    assert gradients_of(optimizer) == []
    one.grad, three.grad = torch.full((1,), 1.0), torch.full((1,), 3.0)
    assert gradients_of(optimizer) == [([1.0], ())]
    optimizer.add_param_group({"params": [three]})
    assert gradients_of(optimizer) == [([1.0, 3.0], ())]
    assert gradients_of(optimizer, {three}) == [([3.0], ())]


def test_gradients_are_listed_by_type_in_their_order() -> None:
    kinds = [torch.float32, torch.bfloat16, torch.float32]
    chosen = [nn.Parameter(torch.zeros(size + 1, dtype=kind)) for size, kind in enumerate(kinds)]
    for parameter in chosen:
        parameter.grad = torch.ones_like(parameter)
    found = gradients_of(torch.optim.SGD(chosen, lr=0.1))
    assert [[len(tensor) for tensor in tensors] for tensors, _ in found] == [[1, 3], [2]]
