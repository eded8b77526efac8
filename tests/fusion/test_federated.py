from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_tricks import EverySteps, WeightFusion, fuse
from lightning_tricks.cli import main
from lightning_tricks.fusion.fed_avg import FedAvg, fed_avg
from lightning_tricks.fusion.fed_opt import FedAdam, FedAvgM, fed_adam, fed_avg_m


def draws(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"w": torch.randn(6, 4, generator=generator, dtype=torch.float64)} for _ in range(count)]


def test_fed_avg_is_numpys_average():
    models, samples = draws(3), [300, 100, 7]
    wanted = np.average([model["w"].numpy() for model in models], axis=0, weights=samples)
    np.testing.assert_allclose(fed_avg(models, samples=samples)["w"], wanted, atol=1e-14)


def test_momentum_is_torchs_sgd_on_the_pseudo_gradient():
    base, *targets = draws(5)
    weight = torch.nn.Parameter(base["w"].clone())
    server = torch.optim.SGD([weight], lr=0.3, momentum=0.8)
    state = None
    for first, second in itertools.pairwise(targets):
        weight.grad = weight.detach() - (0.75 * first["w"] + 0.25 * second["w"])
        server.step()
        base, state = fed_avg_m(base, [first, second], state, samples=[3, 1], lr=0.3, momentum=0.8)
        torch.testing.assert_close(base["w"], weight.detach(), rtol=0, atol=1e-13)


def test_adam_is_torchs_without_its_correction():
    """Torch's step divides m by 1 - beta_1 ** t and the root of v by that of 1 - beta_2 ** t."""
    base, *targets = draws(5)
    weight = torch.nn.Parameter(base["w"].clone())
    first, second = 0.8, 0.95
    server = torch.optim.Adam([weight], betas=(first, second))
    state = None
    for step, target in enumerate(targets, start=1):
        for group in server.param_groups:
            group["lr"] = 0.1 * (1 - first**step) / math.sqrt(1 - second**step)
            group["eps"] = 0.01 / math.sqrt(1 - second**step)
        weight.grad = weight.detach() - target["w"]
        server.step()
        settings = {"lr": 0.1, "betas": (first, second), "tau": 0.01}
        base, state = fed_adam(base, [target], state, samples=[5], **settings)
        torch.testing.assert_close(base["w"], weight.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("serve", [fed_avg_m, fed_adam])
def test_a_policy_is_the_first_step(serve):
    base, *models = draws(3)
    fused, _ = serve(base, models, samples=[3, 1], lr=0.2)
    method = {fed_avg_m: FedAvgM, fed_adam: FedAdam}[serve]((3, 1), lr=0.2)
    torch.testing.assert_close(method.fuse([base, *models]), fused, rtol=0, atol=1e-15)


@pytest.mark.parametrize("serve", [fed_avg_m, fed_adam])
def test_what_no_client_changed_goes_on_with_its_momentum(serve):
    base = {"w": torch.zeros(2), "n": torch.tensor(3)}
    moved, state = serve(base, [{"w": torch.ones(2), "n": torch.tensor(4)}], samples=[1])
    kept = {name: value.clone() for name, value in state.items()}
    again, _ = serve(moved, [{name: value.clone() for name, value in moved.items()}], state, samples=[1])
    assert (again["w"] > moved["w"]).all() and again["n"] == 4
    assert torch.equal(state["w"], kept["w"])  # the state that was given stays


def with_samples(path, seed, **entries):
    torch.save({"state_dict": draws(3)[seed], **entries}, path)
    return path


@pytest.mark.parametrize("method", [FedAvg(), FedAvgM(lr=0.5), FedAdam(lr=0.1)])
def test_samples_that_checkpoints_hold_are_taken(method, tmp_path):
    server = [] if isinstance(method, FedAvg) else [with_samples(tmp_path / "server.ckpt", 2)]
    paths = [
        with_samples(tmp_path / "a.ckpt", 0, samples=300, hyper_parameters={"samples": 5}),
        with_samples(
            tmp_path / "b.ckpt", 1, hyper_parameters={}, datamodule_hyper_parameters={"samples": 100}
        ),
    ]
    given = dataclasses.replace(method, samples=(300, 100))
    written = fuse([*server, *paths], method, tmp_path / "fused.ckpt")
    content = torch.load(written, weights_only=True)
    assert torch.equal(content["state_dict"]["w"], fuse([*server, *paths], given)["w"])
    assert content["fusion"]["settings"]["samples"] == [300, 100]


def test_the_command_line_shows_the_samples_that_it_took(tmp_path, capsys):
    paths = [str(with_samples(tmp_path / f"{i}.ckpt", i, hyper_parameters={"samples": i})) for i in range(2)]
    assert main(["fuse", *paths, "--method", "fed_avg", "-o", str(tmp_path / "fused.ckpt")]) == 0
    assert "from 2 models by FedAvg(samples=(0, 1)); " in capsys.readouterr().out


def test_samples_that_are_nowhere_are_asked_for(tmp_path):
    known = with_samples(tmp_path / "known.ckpt", 0, samples=300)
    # What Lightning counts are batches, of which nothing says how large they are.
    batches = {"fit_loop": {"epoch_loop.batch_progress": {"total": {"completed": 10}}}}
    lacking = with_samples(tmp_path / "lacking.ckpt", 1, hyper_parameters={"width": 2}, loops=batches)
    with pytest.raises(ValueError, match=r"samples must be given, because \S+lacking.ckpt does not say"):
        fuse([known, lacking], FedAvg(), tmp_path / "fused.ckpt")
    with pytest.raises(ValueError, match="samples must be given, because model 1 does not say"):
        fuse([known, draws(1)[0]], FedAvg())
    with pytest.raises(ValueError, match=r"samples in \S+bad.ckpt must lie in .*, got -1"):
        fuse([with_samples(tmp_path / "bad.ckpt", 1, samples=-1)], FedAvg())
    for ask in (lambda: FedAvg().fuse(draws(2)), lambda: FedAvgM().accepts(3), lambda: FedAdam().shares):
        with pytest.raises(ValueError, match=r"samples must be given for Fed\w+\(samples=None.* got None"):
            ask()
    with pytest.raises(ValueError, match="samples must be given for FedAvg"):
        WeightFusion(method=FedAvg(), collect=EverySteps(1, k=2))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: FedAvg(()), TypeError, r"samples must be a list of numbers, got \(\)"),
        (lambda: FedAvg((1, -1)), ValueError, "every entry of samples must lie in"),
        (lambda: FedAvg((0, 0.0)), ValueError, r"samples must not all be 0, got \(0, 0.0\)"),
        (lambda: FedAvgM((1,), lr=0.0), ValueError, "lr must lie in"),
        (lambda: FedAdam((1,), betas=(0.9,)), TypeError, r"betas must be two numbers, got \(0.9,\)"),
        (lambda: FedAdam((1,), betas=(0.9, 1.0)), ValueError, "every entry of betas must lie in"),
        (lambda: FedAdam((1,), tau=0.0), ValueError, "tau must lie in"),
        (lambda: fed_avg(draws(3), samples=[1, 1]), ValueError, "models must be 2 for FedAvg.*, got 3"),
        (lambda: fed_adam(draws(1)[0], draws(3), samples=[1]), ValueError, "models must be 2 for FedAdam"),
    ],
)
def test_wrong_settings_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
