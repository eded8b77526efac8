from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.lifecycle.shadow import Shadows
from lightning_tricks.lifecycle.slots import find_slots, same_places
from lightning_tricks.lifecycle.storage import as_device, shadow_dtype
from tests.averaging.watching import Watch, slow_twin
from tests.toys import Loader, Toy, assert_equal, trainer, weights


class Mixed(nn.Module):
    """Weights of three types, one of them tied, and two that share their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(3, 2).to(torch.bfloat16)
        self.plain = nn.Linear(3, 2)
        self.wide = nn.Linear(3, 2).to(torch.float64)
        self.tied = self.plain
        self.view = nn.Parameter(self.plain.weight.data.view(3, 2))


def shadows_of(module: nn.Module, **settings: Any) -> Shadows:
    return Shadows(find_slots(module, "*", buffers=True), **{"dtype": None, "device": None, **settings})


def sets(shadows: Shadows, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    state = module.state_dict()
    return shadows.sets(state, state)


def moved(module: nn.Module, by: float = 1.0) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by)
    return module


@pytest.mark.parametrize("keep", [False, True])
def test_showing_and_hiding_gives_every_bit_back(keep: bool) -> None:
    module = Mixed()
    shadows = shadows_of(module)
    began = weights(module)
    live = weights(moved(module))
    for _ in range(2):
        shadows.show(keep=keep)
        assert shadows.shown
        assert_equal(weights(module), began)
        shadows.hide()
        shadows.hide()
        assert not shadows.shown
        assert_equal(weights(module), live)
    assert_equal(sets(shadows, module)[1], began)


def test_showing_in_inference_mode_leaves_tensors_that_can_be_trained() -> None:
    module = Mixed()
    shadows = shadows_of(module)
    with torch.inference_mode():
        shadows.show()
    shadows.hide()
    shadows.lerp_(0.5)
    module.plain(torch.ones(1, 3)).sum().backward()
    assert not any(parameter.is_inference() for parameter in module.parameters())


def test_moving_is_lerp_in_at_least_32_bits() -> None:
    module = Mixed()
    shadows = shadows_of(module)
    began = weights(module)
    moved(module)
    shadows.lerp_(0.3)
    one_pass = began["plain.weight"].lerp(module.plain.weight.detach(), 0.3)
    assert torch.equal(sets(shadows, module)[1]["plain.weight"], one_pass)  # whatever is beside it
    shadows.lerp_(torch.tensor(0.5))
    live, average = sets(shadows, module)
    for name, value in began.items():
        half = (live[name].double() - value.double()) * (1 - 0.7 * 0.5)
        expected = (value.double() + half).to(value.dtype)
        torch.testing.assert_close(average[name], expected)
    assert {name: value.dtype for name, value in shadows.beyond().items()} == {
        "narrow.weight": torch.float32,
        "narrow.bias": torch.float32,
    }


def test_a_tied_weight_is_one_tensor_under_all_its_names() -> None:
    module = Mixed()
    slots = find_slots(module, "tied", buffers=False)
    assert {name: slot.names for name, slot in slots.items()} == {
        "plain.weight": ["plain.weight", "tied.weight"],
        "plain.bias": ["plain.bias", "tied.bias"],
    }
    shadows = Shadows(slots, dtype=torch.float64, device=None)
    average = sets(shadows, moved(module))[1]
    assert average["tied.weight"] is average["plain.weight"]
    assert average["wide.weight"] is not average["plain.weight"]


def test_places_are_those_of_the_very_module() -> None:
    module = Mixed()
    slots = find_slots(module, "*", buffers=False)
    assert same_places(slots, find_slots(module, "*", buffers=False))
    assert not same_places(slots, find_slots(module, "plain", buffers=False))
    assert not same_places(slots, find_slots(Mixed(), "*", buffers=False))


def test_buffers_are_chosen_by_the_same_patterns() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm1d(2)))
    net.register_buffer("running", torch.ones(1), persistent=False)

    def buffers(patterns: Any) -> set[str]:
        found = find_slots(net, patterns, buffers=True)
        return {name for name in found if "running" in name}

    first, second = ({f"{path}.running_mean", f"{path}.running_var"} for path in ("1", "2.0"))
    assert buffers("*") == buffers(nn.Module) == buffers((nn.Linear, nn.BatchNorm1d)) == first | second
    assert buffers("2") == buffers(("2.0", nn.Linear)) == second
    assert buffers(nn.Linear) == set()
    assert buffers(lambda name, tensor: "var" in name or tensor.ndim == 2) == {
        "1.running_var",
        "2.0.running_var",
    }


def test_earlier_values_are_taken_by_any_name() -> None:
    module = Mixed()
    slots = find_slots(module, "*", buffers=False)
    shadows = Shadows(slots, dtype=None, device=None, values={"tied.bias": torch.ones(2)})
    assert "plain.bias" not in shadows.fresh
    assert "plain.weight" in shadows.fresh
    assert torch.equal(sets(shadows, module)[1]["plain.bias"], torch.ones(2))


def test_a_frozen_weight_has_a_shadow_only_if_its_value_is_another() -> None:
    module = moved(Mixed()).requires_grad_(False)
    slots = find_slots(module, ("plain", "wide"), buffers=False)
    values = {"plain.bias": module.plain.bias + 1, "wide.bias": module.wide.bias.clone()}
    shadows = Shadows(slots, dtype=None, device=None, values=values)
    assert len(shadows) == 1
    module.plain.weight.requires_grad_(True)
    shadows.join_opened()
    shadows.join_opened()
    assert len(shadows) == 2


def test_types_and_devices() -> None:
    table = [
        (torch.float16, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.complex64, None, torch.complex64),
        (torch.float64, torch.float32, torch.float32),
        (torch.complex64, torch.float64, torch.complex128),
    ]
    assert [shadow_dtype(dtype, asked) for dtype, asked, _ in table] == [right for *_, right in table]
    assert as_device("device", "cuda:1") == as_device("device", torch.device("cuda", 1)) == "cuda:1"
    assert as_device("device", None) is None
    for wrong in ("gpu", 1.5):
        with pytest.raises(ValueError, match="device must name a device of torch"):
            as_device("device", wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_average_follows_the_module_or_stays_away(device: str | None) -> None:
    class Where(Watch):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.device = next(pl_module.parameters()).device.type

    ema, watch, module = EMAWeights(decay=0.9, device=device, dtype="float64"), Where(), Toy()
    runner = trainer(ema, watch, accelerator="gpu", max_epochs=2)
    runner.fit(module, Loader(), Loader(2, seed=9))
    assert watch.device == "cuda"
    runner.fit_loop.max_epochs = 3
    runner.fit(module, Loader(), Loader(2, seed=9))
    steps: list[dict[str, Tensor]] = [{k: v.cpu() for k, v in step.items()} for step in watch.steps]
    expected = slow_twin(steps, lambda _: 0.9, warmup=True, every=1, start=0)
    torch.testing.assert_close(module.head.weight.detach(), expected["head.weight"])
    with ema.live_weights():
        assert_equal(weights(module), steps[-1])
    assert {value.device.type for value in ema.saved()["wide"].values()} == {"cpu"}
