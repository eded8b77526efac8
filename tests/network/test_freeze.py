"""Freeze: what keeps its bits and from when on, what is refused, what comes back."""

from __future__ import annotations

import contextlib
import inspect

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

import lightning_tricks as lt
from lightning_tricks.network.freeze import Freeze, forget_
from tests.lifecycle.test_configuration import read_back
from tests.network.deep import Deep, Watch, fit
from tests.network.test_unfreeze import OPTIMIZERS
from tests.toys import Logged, StopError, TwoOptimizers, scaler_plugin, weights

LINEAR = ("weight", "bias")
NORM = (*LINEAR, "running_mean", "running_var", "num_batches_tracked")
BODY = {f"body.0.{name}" for name in LINEAR} | {f"body.1.{name}" for name in NORM}


def still(before, after):
    """Return the names of what is the same to the bit."""
    return {name for name in before if torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ("body", BODY),
        ("body[:-3]", {f"body.0.{name}" for name in LINEAR}),
        ("[:2]", BODY | {"head.weight", "head.bias"}),
        ("torch.nn.BatchNorm1d", {f"body.1.{name}" for name in NORM}),
        (nn.BatchNorm1d, {f"body.1.{name}" for name in NORM}),
        (("body", "mid.0.weight"), BODY | {"mid.0.weight"}),
        (lambda name, _: name.startswith("body"), BODY),
    ],
)
def test_the_selected_weights_and_their_statistics_keep_their_bits_over_three_epochs(params, kept):
    module = Deep(weight_decay=0.1)
    before = weights(module)
    fit(module, Freeze(params=params), max_epochs=3)
    assert still(before, weights(module)) == kept


def test_statistics_may_be_told_to_move():
    module = Deep()
    before = weights(module)
    fit(module, Freeze(params="body", norm_stats="train"))
    assert still(before, weights(module)) == {name for name in BODY if name.endswith(LINEAR)}


@pytest.mark.parametrize(("dropout", "expected"), [("on", True), ("off", False)])
def test_dropout_of_the_frozen_part_is_switched_off_on_request(dropout, expected):
    module, seen = Deep(), []
    module.head = nn.Sequential(nn.Dropout(), module.head)
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: seen.append(layer.training))
        for layer in (module.body, module.body[3], module.head[0])
    ]
    fit(module, Freeze(params="body", dropout=dropout), val_check_interval=2, max_epochs=1)
    for hook in hooks:
        hook.remove()
    training = [mode for mode in zip(*[iter(seen)] * 3, strict=True) if mode[2]]
    assert training == [(expected, expected, True)] * 5
    assert all(layer.training for layer in module.modules())


@pytest.mark.parametrize("at", ["1 epoch", 5, "33%", "1.2 epochs"])
def test_it_may_begin_later(at):
    watch = Watch()
    fit(Deep(), Freeze(params="body", at=at), watch)
    start = 6 if at == "1.2 epochs" else 5
    assert ["b" in watch.moved(batch) for batch in range(15)] == [True] * start + [False] * (15 - start)
    assert all("m" in watch.moved(batch) for batch in range(15))
    assert watch.modes == [[True, True]] * start + [[False, True]] * (15 - start)


def test_it_never_begins_within_an_accumulation():
    watch = Watch()
    fit(Deep(), Freeze(params="body", at=1), watch, accumulate_grad_batches=2)
    assert [mode[0] for mode in watch.modes] == [True] * 2 + [False] * 13
    assert ["b" in watch.moved(batch) for batch in range(4)] == [True, True, False, False]


class Careful(TwoOptimizers):
    """Gathers the gradients of two batches, over the ends of epochs too; zeroes, and never drops them."""

    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss(batch))
        if self.trainer.fit_loop.total_batch_idx % 2:
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)


@pytest.mark.parametrize(("at", "start"), [("1 epoch", 6), (2, 4)])
def test_what_is_gathered_over_the_end_of_an_epoch_is_stepped_first_and_then_dropped(at, start):
    watch = Watch()
    fit(Careful(), Freeze(params="body", at=at), watch, max_epochs=2)
    assert [mode[0] for mode in watch.modes] == [True] * start + [False] * (10 - start)
    assert still(watch.after[start - 1], watch.after[9]) == BODY


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_stops_on_the_way_keeps_its_bits_and_is_forgotten(name):
    wanted = {"momentum": 0.9, "weight_decay": 0.1}
    known = inspect.signature(getattr(torch.optim, name)).parameters
    module = Deep(lr=0.01, optimizer=name, **{key: wanted[key] for key in wanted if key in known})
    watch = Watch()
    runner = fit(module, Freeze(params="body", at=6), watch)
    assert still(watch.after[5], watch.after[14]) == BODY
    assert BODY.isdisjoint(still(watch.before[0], watch.after[5]))
    (optimizer,) = runner.optimizers
    held = set(optimizer.state)
    assert held.isdisjoint(module.body.parameters()) or name == "LBFGS"
    assert not held.isdisjoint(module.head.parameters()) or name == "LBFGS" or not held


def test_all_that_lbfgs_keeps_is_of_all_and_forgotten():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.LBFGS(parameters)
    optimizer.state[parameters[0]]["old_dirs"] = []
    forget_([optimizer], parameters[1:])
    assert not optimizer.state


def test_it_needs_no_optimizer_memory_from_the_start():
    module = Deep()
    (optimizer,) = fit(module, Freeze(params="body")).optimizers
    assert set(optimizer.state) == {*module.head.parameters(), *module.mid.parameters()}


def test_what_it_logs_tells_and_prints(capsys):
    log, freeze = Logged("freeze"), Freeze(params=("body", "head.bias"), at=5)
    module = Deep()
    module.mid[0].bias.requires_grad_(False)
    fit(module, freeze, log)
    assert log.column("frozen") == [0] * 5 + [59] * 10
    assert freeze.outcome() == {"frozen": 59}
    assert capsys.readouterr().out.splitlines() == [
        "Freeze",
        "| part            | learns           | tensors | parameters |",
        "|-----------------|------------------|---------|------------|",
        "| body, head.bias | until 5 steps    |       5 |         59 |",
        "| all else        | yes              |       2 |         88 |",
        "| all else        | not at the start |       1 |          8 |",
    ]
    fit(module, Freeze(params="body"))
    assert "| body     | no               |       4 |         56 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"params": ""}, ValueError, "params must not hold an empty pattern"),
        ({"params": "a", "at": 0.5}, TypeError, "at must be a whole number of steps"),
        ({"params": "a", "norm_stats": "freeze"}, ValueError, "norm_stats must be one of .*mean 'frozen'"),
        ({"params": "a", "dropout": "of"}, ValueError, "dropout must be one of 'on', 'off', got 'of'"),
    ],
)
def test_settings_that_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Freeze(**settings)


@pytest.mark.parametrize(
    ("params", "settings", "message"),
    [
        (
            "*",
            {},
            r"params must leave a parameter of an optimizer to learn, got '\*', which freezes the last",
        ),
        (
            ("body", "head", "mid"),
            {"at": "2 epochs"},
            "got 'body, head, mid', which freezes the last of them",
        ),
        ("bdy", {}, "params must match a parameter, got 'bdy', which matches none; nearest: 'body'"),
        ("body[4:]", {}, r"params must match a parameter, got 'body\[4:\]', which matches none"),
    ],
)
def test_what_is_refused_before_the_first_batch(params, settings, message):
    module, watch = Deep(), Watch()
    with pytest.raises(ValueError, match=message):
        fit(module, Freeze(params=params, **settings), watch)
    assert watch.open == []
    assert all(p.requires_grad for p in module.parameters())


def test_each_of_two_optimizers_needs_something_to_learn_under_a_scaler():
    freeze = Freeze(params="body")
    with pytest.raises(
        ValueError, match="each optimizer to learn, got 'body', which leaves none of optimizer 0"
    ):
        fit(TwoOptimizers(), freeze, plugins=[scaler_plugin()])
    module = TwoOptimizers()
    before = weights(module)
    fit(module, freeze)
    assert still(before, weights(module)) == BODY


def test_a_moment_that_never_comes_is_said():
    told = "at should come within the run to freeze anything, got '9 epochs'"
    with pytest.warns(UserWarning, match="at comes at step 45, but"), pytest.warns(UserWarning, match=told):
        fit(Deep(), Freeze(params="body", at="9 epochs"))


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end", "on_train_start", None])
def test_flags_and_modes_come_back_at_the_end_and_after_an_error(hook):
    def stop(*_):
        raise StopError

    breaks = Callback()
    if hook:
        setattr(breaks, hook, stop)
    ends = []
    for techniques in ([], [Freeze(params="body", dropout="off")]):
        module = Deep()
        module.body[0].bias.requires_grad_(False)
        with contextlib.suppress(StopError):
            fit(module, *techniques, breaks)
        ends.append(([p.requires_grad for p in module.parameters()], [m.training for m in module.modules()]))
    assert ends[0] == ends[1]


def test_two_of_a_kind_and_unfreezing_share_a_network():
    techniques = [
        lt.ProgressiveUnfreeze(stages=["head", "mid"], lr_factor=1),
        Freeze(params="body.0"),
        Freeze(params="body.1", label="norms", norm_stats="train"),
    ]
    for order in (techniques, techniques[::-1]):
        module, watch = Deep(), Watch()
        fit(module, *order, watch)
        assert watch.open == ["h"] * 5 + ["hm"] * 10
        assert watch.modes == [[True, False]] * 5 + [[True, True]] * 10
        assert still(watch.before[0], watch.after[14]) == {name for name in BODY if name.endswith(LINEAR)}
        assert all(layer.training for layer in module.modules())


@pytest.mark.parametrize(
    ("other", "slot"),
    [
        (lt.ProgressiveUnfreeze(stages=["head", "body", "mid"]), "requires_grad"),
        (Freeze(params="body.0.bias", label="b"), "requires_grad"),
        (lt.Lookahead(), "weights"),
    ],
)
def test_other_owners_are_refused(other, slot):
    with pytest.raises(lt.ConflictError, match=f"{slot!r} must have one owner, got .*Freeze"):
        fit(Deep(), other, Freeze(params="body", at=3))


def test_slow_weights_of_what_is_frozen_from_the_start_stay_too():
    module = Deep()
    before = weights(module)
    fit(module, lt.Lookahead(k=2), Freeze(params="body"))
    assert still(before, weights(module)) == BODY


def test_yaml_holds_every_way_to_choose():
    for params in ("body[:-3]", ("torch.nn.Embedding", "head.*"), "[:1]"):
        freeze = Freeze(params=params, at="10%", norm_stats="train", dropout="off")
        assert repr(read_back(lt.to_yaml(freeze))) == repr([freeze])
