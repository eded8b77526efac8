"""What every method must not do to a tensor, whatever its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_tricks.fusion.average import average
from lightning_tricks.fusion.methods import FusionMethod, check_finite, fuse_tensors


def first(tensors: list[Tensor]) -> Tensor:
    return tensors[0]


def test_batchnorms_counter_is_an_integer_from_the_last_model_and_never_nan():
    models = []
    for steps in (3, 4):
        layer = nn.BatchNorm1d(2)
        for _ in range(steps):
            layer(torch.randn(5, 2))
        models.append(layer.state_dict())
    fused = average(models)
    assert fused["num_batches_tracked"].dtype == torch.int64
    assert fused["num_batches_tracked"] == 4
    assert torch.isfinite(fused["running_mean"]).all()


def test_0_d_one_element_and_empty_tensors_are_fused():
    models = [{"s": torch.tensor(v), "o": torch.tensor([v]), "e": torch.zeros(0, 3)} for v in (1.0, 5.0)]
    fused = average(models)
    assert fused["s"].shape == () and fused["s"] == 3.0
    assert fused["o"].tolist() == [3.0]
    assert fused["e"].shape == (0, 3)


@pytest.mark.parametrize("values", [[True, False], [7, 100_001], [1, -(2**62)]])
def test_integers_and_booleans_come_from_the_last_model(values):
    models = [{"index": torch.tensor([value])} for value in values]
    fused = average(models)
    assert fused["index"].dtype == models[0]["index"].dtype
    assert fused["index"].item() == values[-1]


def test_tied_weights_stay_tied():
    def tied(value: float) -> dict[str, Tensor]:
        shared = torch.full((2, 2), value)
        # As a file gives them back: two tensors, one memory.
        return {"embedding": shared, "head": shared.detach(), "other": shared.clone()}

    fused = average([tied(1.0), tied(2.0)])
    assert fused["embedding"] is fused["head"]
    assert fused["other"] is not fused["head"]


def test_tensors_tied_in_one_model_only_are_fused_apart():
    shared = torch.ones(2)
    apart = {"a": torch.zeros(2), "b": torch.full((2,), 4.0)}
    fused = average([{"a": shared, "b": shared}, apart])
    assert fused["a"].tolist() == [0.5, 0.5]
    assert fused["b"].tolist() == [2.5, 2.5]


def test_the_same_memory_in_two_shapes_is_not_tied():
    first, second = torch.arange(4.0), torch.ones(4)
    fused = average([{"a": flat, "b": flat.view(2, 2), "c": flat[:1]} for flat in (first, second)])
    assert [tuple(fused[name].shape) for name in "abc"] == [(4,), (2, 2), (1,)]


def test_what_is_fused_shares_no_memory_with_the_models():
    model = {"w": torch.ones(2), "n": torch.tensor(1)}
    for fused in (average([model]), average([model, {"w": torch.zeros(2), "n": torch.tensor(2)}])):
        fused["w"].fill_(9.0)
        fused["n"].fill_(9)
    assert model["w"].tolist() == [1.0, 1.0]
    assert model["n"] == 1


def test_a_mask_of_infinities_that_all_models_share_is_kept():
    mask = torch.full((2, 2), -math.inf).triu(1)
    models = [{"mask": mask.clone(), "w": torch.tensor(value)} for value in (0.0, 1.0)]
    assert torch.equal(average(models)["mask"], mask)
    check_finite(models)


def test_numbers_whose_sum_is_too_large_are_finite() -> None:
    models = [{"w": torch.full((3,), value)} for value in (3e38, 2e38)]
    assert average(models)["w"].tolist() == torch.full((3,), 2.5e38).tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("count", [1, 2])
def test_an_entry_that_is_not_finite_is_an_error_that_names_the_tensor(bad, count):
    models = [{"net.w": torch.tensor([1.0, float(index)])} for index in range(2)][:count]
    models[-1]["net.w"][0] = bad
    if count == 1 and math.isinf(bad):
        return  # one model alone is itself, masks included
    for refuse in (average, check_finite):
        with pytest.raises(ValueError, match=rf"net\.w must be finite in every model, .* model {count - 1}"):
            refuse(models)


def test_differences_are_errors_that_name_the_tensor():
    good = {"a": torch.zeros(2), "b": torch.zeros(2, 3)}
    for changed, message in (
        ({"a": torch.zeros(2)}, "b must be in every model; model 0 has it, model 1 has not"),
        ({**good, "c": torch.zeros(1)}, "c must be in every model; model 1 has it, model 0 has not"),
        (
            {**good, "b": torch.zeros(3, 2)},
            r"b must have one shape .* \(2, 3\) in model 0 and \(3, 2\) in model 1",
        ),
        ({**good, "a": torch.zeros(2).half()}, r"a must have one type .* torch.float32 .* torch.float16 in"),
    ):
        with pytest.raises(ValueError, match=message):
            fuse_tensors([good, changed], first)
        with pytest.raises(ValueError, match=message):
            check_finite([good, changed])
    with pytest.raises(ValueError, match="at least one model, got none"):
        fuse_tensors([], first)


def test_a_method_combines_each_floating_tensor_once():
    shared = torch.ones(1)
    seen = []

    def combine(name: str, tensors: list[Tensor]) -> Tensor:
        seen.append(len(tensors))
        return tensors[1]

    models = [{"a": shared * i, "n": torch.tensor(i)} for i in range(3)]
    for model in models:
        model["tied"] = model["a"]
    fused = fuse_tensors(models, combine)
    assert seen == [3]
    assert fused["a"].item() == 1.0 and fused["n"].item() == 2


def test_a_policy_of_ones_own_needs_one_method():
    class Last(FusionMethod):
        def fuse(self, models, evaluate=None):
            return dict(models[-1])

    assert Last().count is None and Last().objective is None and Last().entrywise
    assert Last().fuse([{"w": torch.ones(1)}])["w"].item() == 1.0
    with pytest.raises(TypeError, match="abstract"):
        FusionMethod()
