"""Laws that hold for every method, whatever its formula."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import lightning_tricks as lt
from lightning_tricks.fusion.methods import TensorwiseMethod

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
Models = list[dict[str, Tensor]]
NAMES = {name: getattr(lt, name) for name in lt.__all__}


@dataclass(frozen=True)
class Law:
    """What can be said of a method.

    Attributes:
        method: An example.
        count: How many models to try it with, the base included.
        picks: Which of the models comes out, by the method that gives all weight to it.
        symmetric: From which model on their order does not matter; ``None`` if it does.
        homogeneous: Whether models twice as large give a result twice as large.
        idempotent: Whether equal tensors give the same tensor, were they combined.
    """

    method: TensorwiseMethod
    count: int = 3
    picks: tuple[tuple[int, TensorwiseMethod], ...] = ()
    symmetric: int | None = None
    homogeneous: bool = True
    idempotent: bool = True


LAWS = {
    "Average": Law(
        lt.Average(), picks=((0, lt.Average((1.0, 0.0, 0.0))), (2, lt.Average((0.0, 0.0, 1.0)))), symmetric=0
    ),
    "Interpolate": Law(lt.Interpolate(0.25), 2, ((0, lt.Interpolate(1.0)), (1, lt.Interpolate(0.0)))),
    "Slerp": Law(lt.Slerp(0.25), 2, ((0, lt.Slerp(0.0)), (1, lt.Slerp(1.0)))),
    "TaskArithmetic": Law(
        lt.TaskArithmetic(scale=0.4),
        picks=(
            (0, lt.TaskArithmetic(scale=0.0)),
            (1, lt.TaskArithmetic(weights=(1.0, 0.0))),
            (2, lt.TaskArithmetic(scale=0.5, weights=(0.0, 2.0))),
        ),
        symmetric=1,
    ),
    "Ties": Law(
        lt.Ties(0.3),
        picks=(
            (0, lt.Ties(0.3, scale=0.0)),
            (1, lt.Ties(1.0, weights=(0.3, 0.0))),
            (2, lt.Ties(1.0, weights=(0.0, 1.0))),
        ),
        symmetric=1,
    ),
    "Dare": Law(
        lt.Dare(0.3, seed=1),
        picks=(
            (0, lt.Dare(0.3, scale=0.0)),
            (1, lt.Dare(1.0, weights=(1.0, 0.0))),
            (2, lt.Dare(1.0, weights=(0.0, 1.0))),
        ),
    ),
    "DareTies": Law(
        lt.DareTies(0.3, seed=1),
        picks=((0, lt.DareTies(0.3, scale=0.0)), (1, lt.DareTies(1.0, weights=(1.0, 0.0)))),
    ),
    "Breadcrumbs": Law(
        lt.Breadcrumbs(0.3, gamma=0.1),
        picks=((0, lt.Breadcrumbs(scale=0.0)), (1, lt.Breadcrumbs(1.0, weights=(1.0, 0.0)))),
        symmetric=1,
    ),
    "ModelStock": Law(lt.ModelStock(), symmetric=1),
    "Median": Law(lt.Median(), symmetric=0),
    "TrimmedMean": Law(lt.TrimmedMean(0.1), symmetric=0),
    "SimilarityWeighted": Law(
        lt.SimilarityWeighted("euclidean"),
        picks=((0, lt.SimilarityWeighted("euclidean", to="first", temperature=1e-4)),),
        symmetric=0,
    ),
    "FedAvg": Law(lt.FedAvg((300, 100, 50)), picks=((1, lt.FedAvg((0, 8, 0))), (2, lt.FedAvg((0, 0, 0.5))))),
    "FedAvgM": Law(
        lt.FedAvgM((300, 100), lr=0.5), picks=((1, lt.FedAvgM((8, 0))), (2, lt.FedAvgM((0, 5.0))))
    ),
    "FedAdam": Law(lt.FedAdam((300, 100), lr=0.1), homogeneous=False),
    "Pruned": Law(lt.Pruned(0.5, target=0.6), symmetric=0, idempotent=False),
    "Layerwise": Law(
        lt.Layerwise({"*.0": lt.Slerp(0.25), "*": lt.Average()}),
        2,
        picks=((1, lt.Layerwise({"*.1": lt.Average((0.0, 1.0)), "*": lt.Slerp(1.0)})),),
    ),
    "OverDepth": Law(
        lt.OverDepth((lt.Interpolate(0.0), lt.Interpolate(0.5)), layers=("[!n]*", "n*")),
        2,
        picks=((0, lt.OverDepth((lt.Interpolate(1.0), lt.Interpolate(1.0)), layers=("*",))),),
    ),
}
SYMMETRIC = {name: law for name, law in LAWS.items() if law.symmetric is not None}
EVERY = pytest.mark.parametrize("law", [pytest.param(law, id=name) for name, law in LAWS.items()])


def test_every_method_that_fuses_tensor_by_tensor_is_here() -> None:
    exported = {
        name for name, kind in NAMES.items() if isinstance(kind, type) and issubclass(kind, TensorwiseMethod)
    }
    # Two know more than weights, and have their laws with their own tests.
    assert exported - {"FisherWeighted", "RegMean"} == set(LAWS)


def models(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Models:
    """Return models near one another, with tensors of many shapes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    shapes = {"blocks.0.w": (40, 7), "blocks.1.w": (5, 3, 3), "one": (1,), "scalar": (), "none": (0, 3)}
    start = {name: draw(*shape) + 2.0 for name, shape in shapes.items()}
    return [
        {name: (value + 0.5 * draw(*value.shape)).to(dtype) for name, value in start.items()}
        for _ in range(count)
    ]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@EVERY
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_model_fused_with_itself_is_itself_to_the_bit(law: Law, dtype: torch.dtype) -> None:
    (model,) = models(1, dtype)
    fused = law.method.fuse([{**model} for _ in range(law.count)])
    assert same(model, fused)
    resolved = law.method.resolved(list(model))
    for name, value in model.items() if law.idempotent else ():
        again = resolved.combine(name, [value.clone() for _ in range(law.count)])
        assert again.dtype == dtype
        near = 1e-15 if dtype == torch.float64 else 0.0  # thirds of a double have no more digits to round
        torch.testing.assert_close(again, value, rtol=near, atol=0.0)


@EVERY
@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_of_1_and_0_give_that_model_to_the_bit(law: Law, dtype: torch.dtype) -> None:
    some = models(law.count, dtype)
    for index, method in law.picks:
        # A change in double precision is itself rounded.
        near = 2e-15 if dtype == torch.float64 else 0.0
        torch.testing.assert_close(method.fuse(some), some[index], rtol=0.0, atol=near, msg=f"{index}")


@pytest.mark.parametrize("law", [pytest.param(law, id=name) for name, law in SYMMETRIC.items()])
def test_the_order_of_models_that_are_alike_does_not_matter(law: Law) -> None:
    for seed in range(3):
        some = models(max(law.count, 4) if law.method.count is None else law.count, seed=seed)
        turned = [*some[: law.symmetric], *reversed(some[law.symmetric :])]
        assert same(law.method.fuse(some), law.method.fuse(turned))


@EVERY
def test_models_twice_as_large_give_a_result_twice_as_large(law: Law) -> None:
    some = models(law.count)
    fused = law.method.fuse(some)
    twice = law.method.fuse([{name: 2 * value for name, value in model.items()} for model in some])
    assert same(twice, {name: 2 * value for name, value in fused.items()}) == law.homogeneous


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_computed_wide_and_rounded_once(law: Law, dtype: torch.dtype) -> None:
    some = models(law.count, dtype)
    wide = law.method.fuse([{name: value.float() for name, value in model.items()} for model in some])
    fused = law.method.fuse(some)
    assert all(torch.equal(fused[name], wide[name].to(dtype)) for name in fused)


@EVERY
def test_shapes_layouts_and_inputs_stay(law: Law) -> None:
    some = models(law.count)
    kept = [{name: value.clone() for name, value in model.items()} for model in some]
    fused = law.method.fuse(some)
    for model, before in zip(some, kept, strict=True):
        assert same(model, before)
    assert {name: value.shape for name, value in fused.items()} == {n: v.shape for n, v in some[0].items()}
    turned = [
        {name: value.T.contiguous().T if value.ndim == 2 else value for name, value in model.items()}
        for model in some
    ]
    assert same(law.method.fuse(turned), fused)


@EVERY
def test_complex_tensors_are_fused(law: Law) -> None:
    some = [
        {name: torch.complex(value, value.flip(0) if value.ndim else -value) for name, value in model.items()}
        for model in models(law.count)
    ]
    fused = law.method.fuse(some)["blocks.0.w"]
    assert fused.dtype == torch.complex64 and torch.isfinite(fused).all()
    assert not torch.equal(fused.imag, torch.zeros(40, 7))


@EVERY
def test_what_can_be_done_by_parts_is_the_same_by_parts(law: Law) -> None:
    some = models(law.count)
    resolved = law.method.resolved(list(some[0]))
    tensors = [model["blocks.0.w"] for model in some]
    whole = resolved.combine("blocks.0.w", tensors)
    halves = [
        resolved.combine("blocks.0.w", [part[i] for part in map(torch.tensor_split, tensors, [2] * 9)])
        for i in range(2)
    ]
    if law.method.entrywise:
        assert torch.equal(torch.cat(halves), whole)


@EVERY
def test_the_number_of_threads_changes_nothing(law: Law) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(300, 300, generator=generator) + 1 for _ in range(law.count)]
    resolved = law.method.resolved(list(models(1)[0]))
    threads = torch.get_num_threads()
    results = []
    for number in (1, 3):
        torch.set_num_threads(number)
        results.append(resolved.combine("blocks.0.w", tensors))
    torch.set_num_threads(threads)
    assert torch.equal(*results)


@EVERY
def test_written_down_it_comes_back(law: Law) -> None:
    for method in (law.method, *(method for _, method in law.picks)):
        assert eval(repr(method), NAMES.copy()) == pickle.loads(pickle.dumps(method)) == method
