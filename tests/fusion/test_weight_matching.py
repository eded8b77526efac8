"""Weight matching beside trying all permutations, and specs that a user writes."""

from __future__ import annotations

from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from lightning_tricks.fusion.permutations import checked_spec, permuted, places, read_spec
from lightning_tricks.fusion.weight_matching import align, align_to_mean, weight_matching

Model = dict[str, Tensor]
SPEC = {"a": ("P", None), "a.bias": ("P",), "b": ("Q", "P"), "c": (None, "Q"), "b.running_var": ("Q",)}
SHAPES = {"a": (4, 2), "a.bias": (4,), "b": (3, 4), "c": (2, 3), "b.running_var": (3,)}


def model(seed: int, dtype: torch.dtype = torch.double) -> Model:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def likeness(first: Model, second: Model) -> float:
    """Return the sum that is to be as large as possible; running statistics do not count."""
    return sum(
        float((first[name].conj() * second[name]).real.sum()) for name in first if "running" not in name
    )


def ordered(first: Model, second: Model, p: tuple[int, ...], q: tuple[int, ...]) -> float:
    orders = {"P": torch.tensor(p), "Q": torch.tensor(q)}
    return likeness(first, permuted(second, SPEC, orders))


def test_with_one_permutation_it_finds_the_best_of_all() -> None:
    spec = {"a": ("P", None), "a.bias": ("P",), "c": (None, "P")}
    for seed in range(20):
        first, second = (
            {n: v[:, :4] if n == "c" else v for n, v in model(s).items() if n in spec}
            for s in (seed, seed + 100)
        )
        first["c"], second["c"] = model(seed)["b"], model(seed + 100)["b"]
        found = weight_matching(spec, first, second)
        every = [
            likeness(first, permuted(second, spec, {"P": torch.tensor(order)}))
            for order in permutations(range(4))
        ]
        assert likeness(first, permuted(second, spec, found)) == pytest.approx(max(every), abs=1e-12)


def test_no_permutation_alone_could_be_better_and_most_are_the_best_of_all() -> None:
    best = 0
    for seed in range(8):
        first, second = model(seed), model(seed + 100)
        p, q = (tuple(order.tolist()) for order in weight_matching(SPEC, first, second).values())
        found = ordered(first, second, p, q)
        assert found >= max(ordered(first, second, other, q) for other in permutations(range(4))) - 1e-12
        assert found >= max(ordered(first, second, p, other) for other in permutations(range(3))) - 1e-12
        every = product(permutations(range(4)), permutations(range(3)))
        best += found > max(ordered(first, second, *both) for both in every) - 1e-12
    assert best >= 4


def test_in_a_chain_none_is_left_that_could_be_better() -> None:
    spec = {"a": ("P", None), "b": ("Q", "P"), "c": ("R", "Q"), "d": ("S", "R"), "e": (None, "S")}
    for seed in (6, 8, 15):  # where some get better after others have
        generator = torch.Generator().manual_seed(seed)
        first, second = ({n: torch.randn(4, 4, generator=generator) for n in spec} for _ in range(2))
        found = weight_matching(spec, first, second)
        best = likeness(first, permuted(second, spec, found))
        for name, order in product(found, permutations(range(4))):
            other = permuted(second, spec, {**found, name: torch.tensor(order)})
            assert likeness(first, other) <= best + 1e-4


def test_a_permutation_on_two_axes_of_a_tensor_never_makes_it_worse() -> None:
    spec = {"a": ("P", "P"), "a.bias": ("P",)}
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        first, second = (
            {"a": torch.randn(5, 5, generator=generator), "a.bias": torch.randn(5, generator=generator)}
            for _ in range(2)
        )
        found = weight_matching(spec, first, second)
        fresh = weight_matching({"a": (None, None), "a.bias": ("P",)}, first, second)
        known = likeness(first, permuted(second, spec, fresh))  # from where it sets out
        assert likeness(first, permuted(second, spec, found)) >= known - 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_types_and_equal_seeds(dtype: torch.dtype) -> None:
    first, orders = model(0, dtype), {"P": torch.tensor([2, 0, 3, 1]), "Q": torch.tensor([1, 2, 0])}
    copy = permuted(first, SPEC, orders)
    told: list[str] = []
    found = weight_matching(SPEC, first, copy, seed=3, progress=told.append)
    assert {name: order.argsort().tolist() for name, order in found.items()} == {
        name: order.tolist() for name, order in orders.items()
    }
    assert told[:2] == ["P", "Q"] and set(told) == {"P", "Q"}
    second: list[str] = []
    weight_matching(SPEC, first, copy, seed=3, progress=second.append)
    assert second == told


def test_types_of_8_bits_are_moved() -> None:
    copy = permuted(model(0, torch.float8_e4m3fn), SPEC, {"P": torch.tensor([2, 0, 3, 1])})
    assert torch.equal(copy["a"].float(), model(0, torch.float8_e4m3fn)["a"].float()[[2, 0, 3, 1]])


def test_several_models_are_aligned_to_the_first_or_to_the_mean_of_the_others() -> None:
    start = model(0)
    generator = torch.Generator().manual_seed(0)
    models = [start]
    for seed in range(1, 5):
        noisy = {name: value + 0.3 * model(seed)[name] for name, value in start.items()}
        orders = {"P": torch.randperm(4, generator=generator), "Q": torch.randperm(3, generator=generator)}
        models.append(permuted(noisy, SPEC, orders))

    def together(some: list[Model]) -> float:
        return sum(likeness(one, other) for one in some for other in some if one is not other)

    first, mean = align(models, SPEC), align_to_mean(models, SPEC)
    for aligned in (first, mean):
        assert all(torch.equal(aligned[0][name], start[name]) for name in start)
    assert together(mean) >= together(first) > together(models) + 1
    assert together(align_to_mean(first, SPEC, seed=1)) >= together(first)
    assert len(align_to_mean(models[:1], SPEC)) == 1


def test_axes_of_several_entries_per_unit_and_of_several_permutations() -> None:
    spec = {"a": ("P",), "b": ("Q",), "both": (["P", "Q"],), "flat": (["P", "Q"],)}
    value = {"a": torch.arange(2), "b": torch.arange(3), "both": torch.arange(5), "flat": torch.arange(10)}
    moved = permuted(value, checked_spec(spec), {"P": torch.tensor([1, 0]), "Q": torch.tensor([2, 0, 1])})
    assert moved["both"].tolist() == [1, 0, 4, 2, 3]
    assert moved["flat"].tolist() == [2, 3, 0, 1, 8, 9, 4, 5, 6, 7]


def test_tied_tensors_stay_tied_and_must_move_together() -> None:
    weight = torch.randn(4, 4)
    tied = {"a": weight, "b": weight}
    moved = permuted(tied, {"a": ("P", None), "b": ("P", None)}, {"P": torch.tensor([1, 0, 3, 2])})
    assert moved["a"] is moved["b"]
    with pytest.raises(ValueError, match="same axes for b as for the tensor that it is tied to"):
        permuted(tied, {"a": ("P", None), "b": (None, "P")}, {"P": torch.tensor([1, 0, 3, 2])})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": (None,)}, "spec must name tensors of the models, got 'z'; nearest: 'a'"),
        ({"c": ("Q",)}, r"spec must name 2 axes for c of shape \(2, 3\), got \('Q',\)"),
        ({"b": ("P", "P")}, "spec must fit a, whose axis 0 is 4 long, got 3 of P"),
        ({"c": (("R", "S"), None)}, "must tell how many units R has, but c, axis 0, does not"),
        ({"c": (("P", "Q"), None)}, "spec must fit c, whose axis 0 is 2 long, got 4 of P [+] 3 of Q"),
    ],
)
def test_specs_that_do_not_fit_are_refused(changes: dict[str, tuple[str | None, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        places({**SPEC, **changes}, model(0))


def test_a_tensor_that_the_spec_leaves_out_is_refused_by_name() -> None:
    less = {name: axes for name, axes in SPEC.items() if name != "a.bias"}
    with pytest.raises(
        ValueError, match="spec must name every tensor, but leaves out 'a.bias'; null for one"
    ):
        places(less, model(0))
    assert places({**less, "a.bias": None}, model(0)).keys() == {"P", "Q"}


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 0, 1, 2], [0, 1, 2, 4], [[0, 1, 2, 3]]])
def test_what_is_no_permutation_of_the_units_is_refused(order: list[int]) -> None:
    with pytest.raises(ValueError, match="permutation P must hold each of 0 to 3 once, got tensor"):
        permuted(model(0), SPEC, {"P": torch.tensor(order)})


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("- 1", TypeError, "must be a mapping from names of tensors"),
        ("a: P", TypeError, "must have a list of axes, or nothing, for a, got 'P'"),
        ("a: [1]", TypeError, "must have names of permutations, or nothing, for a, got 1"),
        ("a: [null]", ValueError, "must name at least one permutation, got"),
        ("a: [", ValueError, "spec must be a file of YAML or JSON"),
        (None, FileNotFoundError, "spec must be a file that is there"),
    ],
)
def test_files_that_hold_no_spec_are_refused(text, error, message, tmp_path) -> None:
    path = tmp_path / "spec.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        read_spec(path)
