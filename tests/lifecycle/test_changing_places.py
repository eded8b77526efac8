"""How a set of weights and its shadows change places: by addresses where nobody looks, else by values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, count
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_tricks.core import tensors
from lightning_tricks.lifecycle.shadow import Shadows
from lightning_tricks.lifecycle.slots import find_slots
from tests.lifecycle.test_shadow import Mixed, moved, sets, shadows_of
from tests.toys import assert_equal, weights

MIB = 2**20


class Weight(nn.Module):
    """One weight that training has moved, and its shadow."""

    def __init__(self, entries: int = 6, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(entries, dtype=dtype))
        self.shadows = Shadows(find_slots(self, "*", buffers=False), dtype=None, device=None)
        self.weight.data.fill_(1.0)

    def average(self) -> list[float]:
        return self.shadows.named()["weight"].tolist()


def peak_bytes(action: Callable[[], object]) -> int:
    """Return how much more memory torch held within ``action`` than before it, at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        action()
    assert seen.profiler is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate((event.nbytes() for event in events), initial=0))


def there_and_back(shadows: Shadows) -> None:
    shadows.show()
    shadows.hide()


def test_weights_that_nobody_looks_at_change_places_without_memory() -> None:
    module, places = nn.LSTM(4, 300, num_layers=2), set()
    shadows = Shadows(find_slots(module, "*", buffers=False), dtype=None, device=None)
    live = {name: (p.data_ptr(), p._version) for name, p in module.named_parameters()}

    def exchange() -> None:
        for _ in range(3):
            shadows.show()
            places.update(p.data_ptr() for p in module.parameters())
            with shadows.hidden():
                pass
            shadows.hide()

    assert peak_bytes(exchange) == 0
    assert places == {shadow.data_ptr() for shadow in shadows.named().values()}
    assert {name: (p.data_ptr(), p._version) for name, p in module.named_parameters()} == live


def test_memory_is_measured() -> None:
    assert peak_bytes(lambda: [torch.zeros(MIB), torch.zeros(MIB).clone()]) == 3 * 4 * MIB


def view_held(module: Weight) -> Any:
    return module.weight.detach()[2:]


def saved_for_backward(module: Weight) -> Any:
    return module.weight.view(2, 3) @ torch.ones(3, 1, requires_grad=True)


def flattened(module: Weight) -> Any:
    # As an RNN on a GPU, FSDP or an optimizer of one flat tensor does.
    flat = module.weight.detach().repeat(2)
    module.weight.data = flat[:6]
    return flat


def other_kind(module: Weight) -> None:
    class Kind(nn.Parameter):
        pass

    module.weight = Kind(module.weight.data)


def other_strides(module: Weight) -> None:
    module.weight.data = torch.ones(6, 2)[:, 0]


@pytest.mark.parametrize("looks", [view_held, saved_for_backward, flattened, other_kind, other_strides])
def test_a_weight_that_somebody_looks_at_stays_where_it_is(looks: Callable[[Weight], Any]) -> None:
    module = Weight()
    looker = looks(module)
    place = module.weight.data_ptr()
    for _ in range(2):
        module.shadows.show()
        assert module.weight.data_ptr() == place
        assert module.weight.tolist() == [0.0] * 6
        assert module.average() == [0.0] * 6
        module.shadows.hide()
        assert module.weight.tolist() == [1.0] * 6
        assert module.average() == [0.0] * 6
    del looker


def test_a_weight_that_other_processes_look_at_stays_where_it_is() -> None:
    module = Weight()
    module.weight.data.share_memory_()
    assert not tensors.alone(module.weight)
    assert tensors.alone(Weight().weight)


def test_what_looks_at_the_weight_while_the_average_is_shown_looks_at_the_weight_afterwards() -> None:
    module = Weight()
    module.shadows.show()
    view = module.weight.detach()
    module.shadows.hide()
    assert view.data_ptr() == module.weight.data_ptr()
    module.weight.data.fill_(2.0)
    assert view.tolist() == [2.0] * 6
    assert module.average() == [0.0] * 6
    module.shadows.lerp_(0.5)
    there_and_back(module.shadows)
    assert (module.average(), module.weight.tolist()) == ([1.0] * 6, [2.0] * 6)


def test_a_weight_that_got_other_memory_while_the_average_was_shown_leaves_its_values_there() -> None:
    module = Weight()
    module.shadows.show()
    module.weight.data = torch.full((6,), 3.0)
    with module.shadows.hidden():
        assert module.weight.tolist() == [1.0] * 6
    assert module.weight.tolist() == [3.0] * 6
    module.shadows.hide()
    assert (module.average(), module.weight.tolist()) == ([3.0] * 6, [1.0] * 6)


def test_a_graph_from_before_is_right_afterwards() -> None:
    module = Weight()
    module.weight.data.copy_(torch.arange(6.0))
    loss = (module.weight**2).sum()
    there_and_back(module.shadows)
    loss.backward()
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


@pytest.mark.parametrize(("shape", "pieces"), [((20 * MIB,), 80), ((3, 7 * MIB), 84), ((), 1)])
def test_values_change_places_within_bounded_memory(shape: tuple[int, ...], pieces: int) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(shape))
    shadows = Shadows(find_slots(module, "*", buffers=False), dtype=None, device=None)
    module.weight.data.fill_(2.0)
    view = module.weight.detach()
    assert peak_bytes(shadows.show) <= 64 * MIB
    assert len(shadows._exchanged) == pieces
    assert (float(view.min()), float(view.max())) == (1.0, 1.0)
    assert peak_bytes(shadows.hide) <= 64 * MIB
    assert (float(view.min()), float(view.max())) == (2.0, 2.0)


def test_a_narrower_weight_takes_its_own_size_once_more() -> None:
    module = Weight(MIB, torch.bfloat16)
    assert peak_bytes(lambda: there_and_back(module.shadows)) == module.weight.nbytes
    assert module.average() == [0.0] * MIB


class Interrupt(TorchDispatchMode):
    """Lets the operation number ``moment`` be done, and then raises, as a signal that came meanwhile does."""

    def __init__(self, moment: int) -> None:
        super().__init__()
        self.left = moment

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.left -= 1
        if self.left == -1:
            raise KeyboardInterrupt
        return result


def interrupted(action: Callable[[], None], moment: int) -> bool:
    try:
        with Interrupt(moment):
            action()
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.parametrize("hiding", [False, True])
def test_an_interruption_at_any_moment_is_taken_back(hiding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "PIECE_BYTES", 8)
    for moment in count():
        module = Mixed()
        shadows = shadows_of(module)
        began = weights(module)
        live = weights(moved(module))
        if hiding:
            shadows.show()
        went_on = not interrupted(shadows.hide if hiding else shadows.show, moment)
        shadows.hide()
        assert_equal(weights(module), live)
        assert_equal(sets(shadows, module)[1], began)
        if went_on:
            break
    assert moment > 3 * len(shadows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_follows_a_weight_that_was_replaced(dtype: torch.dtype) -> None:
    module = Weight()
    module.shadows.lerp_(0.5)
    module.weight = nn.Parameter(torch.full((6,), 8.5, dtype=dtype))
    module.shadows.lerp_(0.5)
    assert module.average() == [4.5] * 6


def test_an_interruption_while_a_weight_that_was_looked_at_goes_back_is_taken_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = nn.Linear(1024, 1024, bias=False)  # four pieces
    shadows = Shadows(find_slots(module, "*", buffers=False), dtype=None, device=None)
    live, average = module.weight.detach().clone(), torch.full((1024, 1024), 3.0)
    shadows.named()["weight"].copy_(average)
    swapped, calls = tensors.swap_, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        swapped(*arguments)

    shadows.show()
    view = module.weight.detach()
    monkeypatch.setattr("lightning_tricks.lifecycle.shadow.swap_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shadows.hide()
    shadows.hide()
    assert torch.equal(module.weight, live)
    assert torch.equal(view, live)
    assert torch.equal(shadows.named()["weight"], average)
