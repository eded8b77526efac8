"""Weights with a largest singular value of 1, by names that patterns still find."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

import lightning_tricks as lt
from lightning_tricks.core.exempt import exempt_from_decay
from lightning_tricks.core.select import select
from lightning_tricks.network.spectral_norm import spectral_norm_
from tests.toys import Compiled, Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights

VALIDATION = Loader(2, seed=9, fixed=True)


def largest(weight: torch.Tensor, axis: int = 0) -> float:
    return float(torch.linalg.svdvals(weight.detach().movedim(axis, 0).flatten(1))[0])


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (nn.Linear(5, 3), 0),
        (nn.Linear(5, 1), 0),
        (nn.Embedding(7, 4), 0),
        (nn.Conv1d(2, 6, 3), 0),
        (nn.Conv2d(4, 6, 3, groups=2), 0),
        (nn.ConvTranspose2d(4, 6, 3), 1),
    ],
    ids=str,
)
def test_the_largest_singular_value_is_one(layer, axis):
    with torch.no_grad():
        layer.weight *= 10
    assert largest(layer.weight, axis) > 2
    net = nn.Sequential(layer)
    assert spectral_norm_(net, n_power_iterations=50) == ["0"]
    assert largest(layer.weight, axis) == pytest.approx(1, abs=1e-3)


def test_patterns_choose_and_a_second_time_finds_nothing_left_to_do():
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))})
    assert spectral_norm_(net, params="b") == ["b.0"]
    assert not is_parametrized(net["a"])
    assert spectral_norm_(net) == ["a"]
    assert spectral_norm_(net) == []


def test_processes_begin_alike_and_other_random_numbers_stay():
    nets = [nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    states = []
    for net in nets:
        torch.rand(3)
        before = torch.get_rng_state()
        spectral_norm_(net)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(dict(net.state_dict()))
    assert_equal(*states)
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    spectral_norm_(other, seed=1)
    assert not torch.equal(
        other[0].parametrizations.weight[0]._u, states[0]["0.parametrizations.weight.0._u"]
    )


def old_style() -> nn.Module:
    return nn.utils.spectral_norm(nn.Linear(3, 3))


@pytest.mark.filterwarnings("ignore:.*spectral_norm. is deprecated:FutureWarning")
def with_zeros() -> nn.Module:
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    return layer


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 3), nn.Embedding(3, 3))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("build", "params", "words"),
    [
        (
            lambda: nn.LayerNorm(3),
            "*",
            "must match a layer with a weight matrix, got '\\*', but Sequential has",
        ),
        (lambda: nn.GRU(3, 3), "1", "but Sequential has none"),
        (lambda: nn.Linear(3, 3), "head", "got 'head', which matches none; nearest: '1'"),
        (lambda: parametrizations.weight_norm(nn.Linear(3, 3)), "*", "got '1', made by '_WeightNorm'"),
        (lambda: parametrizations.orthogonal(nn.Linear(3, 3)), "*", "got '1', made by '_Orthogonal'"),
        (old_style, "*", "got '1', made by a hook"),
        (lambda: nn.LazyLinear(3), "*", "the lazy '1'"),
        (with_zeros, "*", "must match weights that are not all zero, got '1': there is no direction"),
        (tied, "*", r"must match weights of one layer, got '1\.0', whose weight is another's too"),
    ],
)
def test_what_cannot_be_normalised_is_named(build, params, words):
    net = nn.Sequential(nn.ReLU(), build())
    before = list(net.state_dict())
    with pytest.raises(ValueError, match=words):
        spectral_norm_(net, params=params)
    assert list(net.state_dict()) == before


def test_what_is_sharded_is_refused_with_the_way_out(one_process):
    net = nn.Sequential(nn.Linear(3, 4))
    fully_shard(net, mesh=one_process)
    with pytest.raises(ValueError, match=r"call lightning_tricks.spectral_norm_\(self\) in configure_model"):
        spectral_norm_(net)


def test_patterns_and_decay_see_the_weight_as_before():
    net = nn.ModuleDict({"body": nn.Linear(4, 1), "words": nn.Embedding(5, 4)})
    plain = exempt_from_decay(net)
    assert {name for name, p in net.named_parameters() if p in plain} == {"body.bias", "words.weight"}
    spectral_norm_(net)
    exempt = exempt_from_decay(net)
    original = net["body"].parametrizations.weight.original
    assert exempt == {net["body"].bias, net["words"].parametrizations.weight.original}
    for pattern in ("body.weight", "*y.weight", "body.parametrizations.weight.original"):
        assert list(select(net, pattern).values()) == [original], pattern
    assert list(select(net, "body")) == ["body.bias", "body.parametrizations.weight.original"]


class Normal(Toy):
    """Normalises its weights by itself."""

    def __init__(self) -> None:
        super().__init__()
        spectral_norm_(self)


class Watch(Callback):
    """Asserts in each validation that the weights used are of norm 1, near enough."""

    def on_validation_batch_start(self, trainer, pl_module, *_):
        assert largest(pl_module.head.weight) == pytest.approx(1, abs=0.1)


def fit(module: Toy, *callbacks: Callback, ckpt_path: Path | None = None) -> Toy:
    trainer(*callbacks).fit(module, Loader(), VALIDATION, ckpt_path=ckpt_path)
    return module


def test_the_run_is_that_of_a_module_with_the_layers_and_resumes_to_the_bit(tmp_path, capsys):
    technique = lt.SpectralNorm()
    whole = fit(Toy(), technique, Watch())
    assert technique.outcome() == {"normalised": 2}
    assert "SpectralNorm normalises the weights of 'body.0', 'head'" in capsys.readouterr().out
    assert_equal(weights(whole), weights(fit(Normal(), lt.SpectralNorm())))
    path = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        fit(Toy(), lt.SpectralNorm(), StopAfter(7, path))
    assert_equal(weights(whole), weights(fit(Toy(), lt.SpectralNorm(), ckpt_path=path)))
    wanted = trainer().validate(Normal.load_from_checkpoint(path), VALIDATION, verbose=False)
    runner = trainer(lt.SpectralNorm())
    assert runner.validate(Toy(), VALIDATION, ckpt_path=path, verbose=False) == wanted


def test_a_compiled_part_computes_with_the_normalised_weight():
    module, plain = (fit(each, lt.SpectralNorm()) for each in (Compiled(), Toy()))
    ours = {name.replace("_orig_mod.", ""): value for name, value in weights(module).items()}
    torch.testing.assert_close(ours, weights(plain))


@pytest.mark.parametrize("technique", [lt.EMAWeights, lt.WeightFusion], ids=["average", "fusion"])
def test_averages_are_of_what_learns(technique, tmp_path):
    second = technique(decay=0.5) if technique is lt.EMAWeights else technique(keep="always")
    module = Toy()
    runner = trainer(lt.SpectralNorm(), second, default_root_dir=tmp_path)
    runner.fit(module, Loader(), VALIDATION)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    (found,) = runner.validate(module, VALIDATION, verbose=False)
    (again,) = trainer().validate(Normal.load_from_checkpoint(tmp_path / "a.ckpt"), VALIDATION, verbose=False)
    assert found == again
    plain = fit(Toy(), lt.SpectralNorm())
    name = "head.parametrizations.weight.original"
    assert not torch.equal(weights(plain)[name], weights(module)[name])


def test_a_layer_may_be_normalised_by_itself():
    layer = nn.Linear(3, 4)
    assert spectral_norm_(layer) == [""]
    for _ in range(50):
        layer(torch.zeros(1, 3))
    assert largest(layer.weight) == pytest.approx(1.0)
    assert spectral_norm_(layer, params=nn.Linear) == []
