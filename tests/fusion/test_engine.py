"""Fusing in slices gives what fusing in memory gives, to the bit."""

from __future__ import annotations

import itertools
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_tricks import Average, GreedySoup, Interpolate, NelderMeadSoup, Probe, fuse
from lightning_tricks.fusion.fuse import Fusion
from lightning_tricks.fusion.methods import FusionMethod, TensorwiseMethod
from tests.fusion.stored import KINDS, plain, state

METHODS: list[tuple[FusionMethod, int]] = [
    (Average(), 1),
    (Average(), 3),
    (Average((0.5, 0.2, 0.3)), 3),
    (Interpolate(0.3), 2),
]
"""Each with the number of models that it is given."""


@dataclass(frozen=True)
class Whole(TensorwiseMethod):
    """A method that needs tensors whole, in their shapes: the first, scaled to the norm of the last."""

    @property
    def entrywise(self) -> bool:
        return False

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        if name == "columns":
            assert tensors[0].shape == (9, 40)
        first, last = tensors[0].double(), tensors[-1].double()
        return (first * (last.norm() / first.norm())).to(tensors[0].dtype)


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype and one[name].shape == other[name].shape, name
        bits = [each[name].contiguous().view(-1).view(torch.uint8) for each in (one, other)]
        assert torch.equal(*bits), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("method", "count"), [*METHODS, (Whole(), 2)], ids=repr)
def test_slices_threads_and_memory_change_no_bit(
    method: FusionMethod, count: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    models = [state(seed, dtype) for seed in range(count)]
    expected = method.fuse(models)
    paths = [plain(model, tmp_path / f"{seed}.pt") for seed, model in enumerate(models)]
    least = 1024 * 4 * (8 + 3 * 16) if method.entrywise else 7001 * 3 * (2 * 8 + 5 * 8)
    for threads, max_memory in itertools.product((1, 2, 3), (None, least)):
        for given in (models, paths):
            fused = fuse(given, method, threads=threads, max_memory=max_memory)
            same_bits(fused, expected)
            assert fused["head.weight"] is fused["embedding.weight"]


@pytest.mark.parametrize("output", ["fused.ckpt", "fused.safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_all_kinds_become_a_file_of_either(kind: str, output: str, tmp_path: Path) -> None:
    models = [state(seed) for seed in range(3)]
    paths = [KINDS[kind](model, tmp_path / f"{seed}{kind}") for seed, model in enumerate(models)]
    written = fuse(paths, Average((0.5, 0.2, 0.3)), tmp_path / output)
    assert written == tmp_path / output
    same_bits(
        dict(sorted(fuse([written]).items())),  # type: ignore[union-attr]
        dict(sorted(Average((0.5, 0.2, 0.3)).fuse(models).items())),
    )


def test_equal_slices_of_tensors_that_differ_are_combined_like_the_rest() -> None:
    # By these weights three times 0.1 is not 0.1 in double precision: only a tensor that is equal is kept.
    weights = (0.35, 0.35, 0.3)
    models = [state(seed, torch.float64) for seed in range(3)]
    fused = fuse(models, Average(weights), max_memory=200_000)
    assert fused["same"][0] == 0.1  # type: ignore[index]
    assert (fused["barely"][:9000] == 0.35 * 0.1 + 0.35 * 0.1 + 0.3 * 0.1).all()  # type: ignore[index]
    assert fused["barely"][0] != 0.1  # type: ignore[index]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, -1])
def test_what_is_not_finite_is_named_and_nothing_is_left(bad: float, at: int, tmp_path: Path) -> None:
    models = [state(seed) for seed in range(2)]
    models[1]["barely"][at] = bad
    if math.isinf(bad) and at == 0:
        models[0]["barely"][at] = bad  # equal as far as the first slices tell
    with pytest.raises(ValueError, match=r"barely must be finite in every model, but is not in model [01]"):
        fuse(models, output=tmp_path / "new" / "fused.ckpt", max_memory=100_000)
    assert list((tmp_path / "new").iterdir()) == []


def test_methods_that_need_models_whole_get_them(tmp_path: Path) -> None:
    models = [{"w": torch.tensor([float(value)]), "n": torch.tensor(value)} for value in (0, 4, 9)]
    paths = [plain(model, tmp_path / f"{index}.pt") for index, model in enumerate(models)]

    def near_three(model: dict[str, Tensor]) -> float:
        return -abs(float(model["w"]) - 3.0)

    told: list[tuple[int, int]] = []
    fused = fuse(paths, GreedySoup(), evaluate=near_three, progress=lambda *now: told.append(now))
    assert fused == {"w": torch.tensor([2.0]), "n": torch.tensor(4)}
    assert told[-1][0] == told[-1][1]
    with pytest.raises(ValueError, match=r"evaluate must be given for GreedySoup"):
        fuse(paths, GreedySoup())


def test_memory_that_does_not_do_is_refused_with_how_much_would() -> None:
    models = [state(seed) for seed in range(2)]
    with pytest.raises(ValueError, match=r"max_memory must be at least 49152 bytes for .* got 1000"):
        fuse(models, max_memory=1000)
    fuse(models, max_memory=49152)
    with pytest.raises(ValueError, match=r"max_memory must be at least 1008144 bytes for embedding.weight"):
        fuse(models, Whole(), max_memory=49152)


def test_tensors_are_worked_on_at_a_time_as_memory_allows() -> None:
    models = [{name: torch.full((100, 100), float(seed)) for name in "abcd"} for seed in range(2)]
    active: list[int] = [0]
    most: list[int] = []
    meeting = threading.Barrier(2)

    class Watched(Whole):
        def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
            active[0] += 1
            most.append(active[0])
            if meet:
                meeting.wait(20)  # breaks if it stays alone
            time.sleep(0.01)
            active[0] -= 1
            return tensors[0]

    meet = True
    fuse(models, Watched(), threads=2)
    meet, one = False, 100 * 100 * (2 * 4 + 5 * 8)
    most.clear()
    fuse(models, Watched(), threads=3, max_memory=2 * one - 1)
    assert most == [1, 1, 1, 1]


def test_tensors_tied_in_one_model_only_are_fused_apart(tmp_path: Path) -> None:
    shared = torch.ones(2)
    tied = {"a": shared, "b": shared.view(2)}
    apart = {"a": torch.zeros(2), "b": torch.full((2,), 4.0)}
    for models in ([tied, apart], [plain(tied, tmp_path / "a.pt"), plain(apart, tmp_path / "b.pt")]):
        fused = fuse(models)
        assert fused["a"].tolist() == [0.5, 0.5] and fused["b"].tolist() == [2.5, 2.5]  # type: ignore[index]


def test_progress_counts_all_that_is_read() -> None:
    models, told = [state(seed) for seed in range(2)], []
    fuse(models, progress=lambda *now: told.append(now), max_memory=49152)
    done = [now[0] for now in told]
    assert done == sorted(done) and {now[1] for now in told} == {done[-1]}
    floats = {name: value for name, value in models[0].items() if value.is_floating_point()}
    floats.pop("head.weight")
    assert done[-1] == 2 * sum(value.nbytes for value in floats.values()) + 8 + 4


def test_a_method_that_returns_another_type_or_shape_is_refused() -> None:
    class Wrong(Average):
        def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
            return tensors[0].double()

    with pytest.raises(TypeError, match=r"must return a tensor of the shape and type of .*torch.float64"):
        fuse([state(0), state(1)], Wrong())


def test_the_threads_of_torch_are_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        fuse([state(0), state(1)])
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("models", "method", "message"),
    [
        ([], Average(), "models must hold at least one model, got none"),
        ([state(0)], Interpolate(0.5), r"models must be 2 for Interpolate\(alpha=0.5\), got 1"),
        ([state(0)] * 3, Average((0.5, 0.5)), r"models must be 2 for Average\(weights=\(0.5, 0.5\)\), got 3"),
        ([state(0), state(1, rows=9)], Average(), r"weight must have one shape in all models, .* model 1"),
        ([state(0), state(1).popitem() and {}], Average(), "model 1 must hold a checkpoint or a state dict"),
        (
            [state(0), state(0, torch.float16)],
            Average(),
            r"embedding.weight must have one type in all models, got torch.float32 in model 0 and",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(models: Any, method: FusionMethod, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse(models, method)


def test_arguments_of_other_types_are_refused(tmp_path: Path) -> None:
    for call, message in (
        (lambda: fuse("a.ckpt"), "models must be a list of paths"),
        (lambda: fuse([3]), "a model must be a path, a state dict or a module, got 3"),
        (lambda: fuse([state(0)], "average"), "method must be a FusionMethod such as Average"),
        (lambda: fuse([state(0)], max_memory="1GB"), "max_memory must be a whole number"),
        (lambda: fuse([state(0)], allow_missing=1), "allow_missing must be True or False"),
        (lambda: fuse([state(0)], GreedySoup(), evaluate="acc"), "evaluate must be a function .*, got 'acc'"),
        (lambda: fuse([state(0)], GreedySoup(), evaluate=str), "evaluate must return a number, got"),
        (lambda: fuse([state(0)], NelderMeadSoup(), evaluate=dict), "evaluate must return a number, got {"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_what_the_method_does_not_use_is_refused() -> None:
    module = torch.nn.Linear(1, 1)
    probe = Probe(module, [torch.ones(1, 1)], lambda module, x: module(x).sum())
    for call, message in (
        (lambda: fuse([module], evaluate=len), "evaluate must be left out for Average"),
        (lambda: fuse([module], probe=probe), "probe must be left out for Average"),
        (
            lambda: fuse([module], GreedySoup(mode="min"), evaluate=len),
            "mode must not be 'min' .* higher",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_names_are_compared_without_prefix_and_wrappers() -> None:
    first = {f"net._orig_mod.{name}": value for name, value in state(0).items()}
    fused = fuse([first, state(1)], prefix="net.")
    expected = Average().fuse([state(0), state(1)])
    same_bits({name.removeprefix("net._orig_mod."): value for name, value in fused.items()}, expected)
    assert list(fused) == list(first)
    with pytest.raises(ValueError, match=r"barely must be in every model; .*; prefix='net\.' compares names"):
        fuse([state(1), first])
    with pytest.raises(ValueError, match=r"prefix must leave names apart, .* a\.w and w of model 0"):
        fuse([{"a.w": torch.zeros(1), "w": torch.zeros(1)}], prefix="a.")


def test_tensors_that_are_missing_are_refused_or_taken_from_the_last_that_has_them() -> None:
    one, two, three = state(0), state(1), state(2)
    del one["norm.weight"], three["scale"], two["scale"]
    with pytest.raises(ValueError, match=r"norm.weight must be .* model; model 1 has it, model 0 has not"):
        fuse([one, two, three])
    fused = fuse([one, two, three], allow_missing=True)
    assert torch.equal(fused["norm.weight"], three["norm.weight"])
    assert torch.equal(fused["scale"], one["scale"])
    assert torch.equal(fused["one"], Average().fuse([{"one": m["one"]} for m in (one, two, three)])["one"])
    assert list(fused) == [*one, "norm.weight"]
    two["one"] = torch.zeros(2)
    with pytest.raises(ValueError, match="one must have one shape"):
        fuse([one, two, three], allow_missing=True)


def test_the_base_of_a_method_comes_first(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Added(Average):
        base: str | None = None

        def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
            return sum(tensors[1:]) - tensors[0]

    base = plain({"w": torch.tensor([1.0])}, tmp_path / "base.pt")
    fused = fuse([{"w": torch.tensor([2.0])}, {"w": torch.tensor([4.0])}], Added(base=str(base)))
    assert fused == {"w": torch.tensor([5.0])}
    with Fusion(models=[{"w": torch.tensor([2.0])}], method=Added(base=str(base))).opened() as found:
        assert [model.label for model in found.models] == [str(base), "model 1"]
