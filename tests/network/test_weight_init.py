"""WeightInit in runs: when it draws, what it refuses to lose, and what it says."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.utils import parametrizations

from lightning_tricks import ConflictError, WeightInit
from lightning_tricks.network import weight_init
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights


class Still(Toy):
    """Keeps its weights while it trains."""

    def __init__(self) -> None:
        super().__init__(lr=0.0, optimizer="SGD")


def fit(*techniques, module=None, **options):
    module = Still() if module is None else module
    trainer(*techniques, max_epochs=1).fit(module, Loader(), **options)
    return module


def test_it_draws_before_the_run_and_says_what(capsys) -> None:
    module = fit(WeightInit(scheme="orthogonal", nonlinearity="linear", seed=1))
    for weight, gain in ((module.body[0].weight, 25 / 9), (module.head.weight.T, 1.0)):
        torch.testing.assert_close(weight.T @ weight, gain * torch.eye(weight.shape[1]), rtol=0, atol=1e-5)
    assert not module.head.bias.any() and not module.body[0].bias.any()
    table = capsys.readouterr().out
    assert "| body.0.weight | Linear | 4, 8         | 1.667 tanh" in table
    assert "1 linear (told)" in table
    assert "left alone: 'body.1.weight', 'body.1.bias' of BatchNorm1d, normalisation" in table


def test_a_seed_gives_the_same_weights_and_leaves_the_run_its_random_numbers() -> None:
    class Notes(Still):
        def on_train_start(self) -> None:
            self.drawn = torch.rand(3)

    plain = fit(module=Notes())
    first = fit(WeightInit(seed=7), module=Notes())
    module = Notes()
    torch.rand(100)
    second = fit(WeightInit(seed=7), module=module)
    assert_equal(weights(first), weights(second))
    assert torch.equal(plain.drawn, first.drawn)
    assert not torch.equal(plain.drawn, second.drawn)


def test_only_what_params_matches() -> None:
    before = weights(Still())
    after = weights(fit(WeightInit(params="head", bias=0.5, seed=1)))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"head.weight", "head.bias"} <= changed and "body.0.weight" not in changed
    assert (after["head.bias"] == 0.5).all()


@pytest.mark.parametrize("change", ["trained", "loaded", "set"])
def test_weights_that_somebody_made_are_refused_and_kept(change: str) -> None:
    module = Toy()
    if change == "trained":
        trainer(max_epochs=1).fit(module, Loader())
    elif change == "loaded":
        module.load_state_dict({k: v * 3 for k, v in module.state_dict().items()})
    else:
        nn.init.normal_(module.head.weight, std=0.5)
    before = weights(module)
    names = "'head.weight'" if change == "set" else "'body.0.weight'"
    with pytest.raises(ValueError, match=f"as torch first draws them, got {names}.* by overwrite"):
        fit(WeightInit(), module=module)
    assert_equal(before, weights(module))


def test_overwrite_names_what_may_be_lost() -> None:
    module = Still()
    nn.init.normal_(module.head.weight, std=5.0)
    fit(WeightInit(overwrite="head.*", seed=1), module=module)
    assert module.head.weight.abs().max() < 5.0
    with pytest.raises(ValueError, match="overwrite must match a parameter, got 'tail'"):
        fit(WeightInit(overwrite="tail"))


def test_a_resumed_run_has_the_weights_of_its_checkpoint(tmp_path: Path, capsys) -> None:
    saved = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(StopAfter(2, saved)).fit(Toy(), Loader())
    wanted = torch.load(saved, weights_only=True)["state_dict"]
    capsys.readouterr()
    for module in (Toy(), Toy.load_from_checkpoint(saved, weights_only=True)):
        module.on_train_start = lambda module=module: assert_equal(weights(module), dict(wanted))
        trainer(WeightInit(), max_epochs=1).fit(module, Loader(), ckpt_path=saved)
    assert "WeightInit" not in capsys.readouterr().out


def test_a_second_fit_goes_on() -> None:
    module = Toy()
    runner = trainer(WeightInit(seed=1), max_epochs=1)
    runner.fit(module, Loader())
    before = weights(module)
    module.on_train_start = lambda: assert_equal(before, weights(module))
    runner.fit_loop.max_epochs = 2
    runner.fit(module, Loader())


def test_evaluations_leave_weights_alone() -> None:
    module = Toy()
    before = weights(module)
    trainer(WeightInit()).validate(module, Loader(), verbose=False)
    assert_equal(before, weights(module))


def test_two_may_not_set_one_weight_but_two() -> None:
    one, other = WeightInit(params="body"), WeightInit(params=("head", "body"), label="other")
    with pytest.raises(ConflictError, match="'initial_weights' must have one owner, got WeightInit and"):
        fit(one, other)
    fit(WeightInit(params="body", seed=1), WeightInit(params="head", label="other", seed=1))


def test_layers_made_in_configure_model_are_set_and_parametrized_ones_left_alone(capsys) -> None:
    class Late(Still):
        def configure_model(self) -> None:
            self.late = nn.Linear(2, 2)
            self.normed = parametrizations.weight_norm(nn.Linear(2, 2))

    fit(WeightInit(seed=1), module=Late())
    table = capsys.readouterr().out
    assert "late.weight" in table
    assert "normed.parametrizations.weight.original0" in table and "of ParametrizationList" in table


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scheme": "zeros"}, "scheme must break symmetry, got 'zeros': units that start equal"),
        ({"bias": "none"}, "bias must be a number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"params": ()}, "params must name at least one pattern"),
        ({"overwrite": ""}, "overwrite must not hold an empty pattern"),
    ],
)
def test_settings_are_checked_at_once(settings, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        WeightInit(**settings)


class Apart(Still):
    """Each process makes weights of its own, and comes with random numbers of its own."""

    def setup(self, stage: str) -> None:
        torch.manual_seed(self.global_rank)

    def on_train_start(self) -> None:
        first = self.trainer.strategy.broadcast(weights(self))
        assert_equal(first, weights(self))


def test_processes_with_other_random_numbers_draw_the_same() -> None:
    settings = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    trainer(WeightInit(), max_epochs=1, **settings).fit(Apart(), Loader())


class Loaded(Still):
    """Has loaded weights in the first process alone; DDP hands them on."""

    def setup(self, stage: str) -> None:
        if not self.global_rank:
            self.head.weight.data *= 3.0


def test_weights_that_one_process_alone_has_loaded_are_refused_in_all(tmp_path: Path, monkeypatch) -> None:
    def note(names: list[str]) -> None:
        (tmp_path / str(dist.get_rank())).write_text(repr(names))

    monkeypatch.setattr(
        weight_init, "refuse_stale", note
    )  # an error of one would end the other before its own
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=5))
    settings = {"strategy": strategy, "devices": 2, "use_distributed_sampler": False}
    trainer(WeightInit(), max_epochs=1, **settings).fit(Loaded(), Loader())
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["['head.weight']"] * 2
