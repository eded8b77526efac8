"""ProgressiveUnfreeze around a run: settings, metrics that stall, what is said, what is left behind."""

from __future__ import annotations

import contextlib
import pickle
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI
from torch import nn

from lightning_tricks.network.openings import Plateau
from lightning_tricks.network.unfreeze import ProgressiveUnfreeze
from tests.network.deep import STAGES, Deep, Graded, Watch, fit
from tests.toys import Loader, StopError, Toy, TwoOptimizers, scaler_plugin, trainer


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"stages": "head"},
            TypeError,
            "stages must be a list with the patterns of each stage, or how .*, got 'head'",
        ),
        (
            {"stages": []},
            TypeError,
            r"stages must be a list with the patterns of each stage, or .*, got \[\]",
        ),
        ({"stages": ["a", ()]}, ValueError, r"stages\[1\] must name at least one pattern"),
        ({"stages": ["a", 3]}, TypeError, r"stages\[1\] must hold name patterns"),
        ({"lr_factor": 0}, ValueError, r"lr_factor must lie in \(0.0, inf\), got 0"),
        ({"norm_stats": "freeze"}, ValueError, "norm_stats must be one of .* did you mean 'frozen'"),
        ({"at": 0.5}, TypeError, "at must be a whole number of steps"),
        ({"at": ["1 epoch"]}, ValueError, "at must hold a moment for each stage but the first, 2 in all"),
    ],
)
def test_settings_that_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        ProgressiveUnfreeze(**{"stages": STAGES, **settings})
    with pytest.raises(TypeError, match="stages"):
        ProgressiveUnfreeze()


@pytest.mark.parametrize(
    "settings",
    [
        {"stages": ["head", ("mid", "body.*")], "at": ["1 epoch"], "lr_factor": 0.5, "norm_stats": "train"},
        {"stages": STAGES, "at": Plateau("val_loss", patience=3, mode="max"), "label": "one"},
        {"stages": STAGES, "at": 100},
    ],
)
def test_repr_pickle_and_yaml_rebuild_it(settings):
    first = ProgressiveUnfreeze(**settings)
    assert repr(eval(repr(first))) == repr(first)
    assert repr(pickle.loads(pickle.dumps(first))) == repr(first)
    given = {**settings, "stages": [list(s) if isinstance(s, tuple) else s for s in settings["stages"]]}
    if isinstance(given.get("at"), Plateau):
        plateau = {"class_path": "lightning_tricks.network.openings.Plateau", "init_args": vars(given["at"])}
        given["at"] = plateau
    spec = {"class_path": "lightning_tricks.network.unfreeze.ProgressiveUnfreeze", "init_args": given}
    args = {"trainer": {"callbacks": [spec], "logger": False, "accelerator": "cpu"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser's own
        cli = LightningCLI(Toy, run=False, save_config_callback=None, args=args)
    assert repr(next(c for c in cli.trainer.callbacks if isinstance(c, ProgressiveUnfreeze))) == repr(first)


def test_stages_open_when_a_metric_stalls():
    watch = Watch()
    unfreeze = ProgressiveUnfreeze(stages=STAGES, at=Plateau("grade", patience=2, mode="max"))
    module = Graded(0.5, 0.5, 0.4, 0.6, 0.6, float("nan"), 0.5, 0.5, 0.5)
    fit(module, unfreeze, watch, max_epochs=9)
    assert watch.open == ["h"] * 15 + ["hm"] * 15 + ["hmb"] * 15
    assert watch.modes == [[False, False]] * 15 + [[False, True]] * 15 + [[True, True]] * 15
    assert unfreeze.saved()["opened"] == unfreeze.outcome()["opened"] == 3


def test_a_stall_within_an_accumulation_waits_for_its_step():
    watch = Watch()
    unfreeze = ProgressiveUnfreeze(stages=["head", ("mid", "body")], at=Plateau("grade", patience=1))
    # Validation after each batch; steps after batches 2 and 4 of an epoch.
    settings = {"val_check_interval": 1, "accumulate_grad_batches": 3, "max_epochs": 1}
    fit(Graded(0.5, 0.6, 0.1, 0.1, 0.1), unfreeze, watch, **settings)
    assert watch.open == ["h"] * 3 + ["hmb"] * 2


def test_only_validation_within_fit_counts():
    unfreeze = ProgressiveUnfreeze(stages=["head", ("mid", "body")], at=Plateau("val_loss", patience=1))
    module = Deep()
    runner = trainer(unfreeze, max_epochs=1)
    with pytest.warns(UserWarning, match="but 1 never did: mid, body"):
        runner.fit(module, Loader(), Loader(2))
    for _ in range(3):
        runner.validate(module, Loader(2), verbose=False)
    assert unfreeze.saved()["watch"]["bad"] == 0
    assert unfreeze.saved()["opened"] == 1


def test_a_share_of_an_endless_run_is_refused_before_the_first_batch():
    module, watch = Deep(), Watch()
    with pytest.raises(ValueError, match="must be in steps, or max_steps be set, .* got '50%'"):
        fit(module, ProgressiveUnfreeze(stages=STAGES, at=[1, "50%"]), watch, max_epochs=-1)
    assert watch.open == []
    assert all(p.requires_grad for p in module.parameters())


def test_stages_that_never_open_are_named(capsys):
    late = [pytest.warns(UserWarning, match=f"stage {stage}: at comes at") for stage in (2, 3)]
    told = "each stage should open in the run, but 2 never did: mid; body, Batch"
    with late[0], late[1], pytest.warns(UserWarning, match=told):
        fit(Deep(), ProgressiveUnfreeze(stages=["head", "mid", ("body", nn.BatchNorm1d)], at="3 epochs"))
    capsys.readouterr()
    fit(Deep(), ProgressiveUnfreeze(stages=STAGES), fast_dev_run=True)
    assert capsys.readouterr().out == ""


def test_open_parameters_without_gradient_are_named_once():
    module = Deep()
    module.spare = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match="got none for 'spare.weight', 'spare.bias'") as caught:
        fit(module, ProgressiveUnfreeze(stages=["head", ("mid", "spare"), "body"]))
    assert sum("should get a gradient" in str(warning.message) for warning in caught) == 1


def test_a_cancelled_step_is_no_missing_gradient():
    class Cancel(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step % 5 == 0:
                optimizer.zero_grad()

    fit(Deep(), Cancel(), ProgressiveUnfreeze(stages=STAGES))


def test_table_is_printed_at_the_start(capsys):
    fit(Deep(), ProgressiveUnfreeze(stages=["head", ("mid", "body")], lr_factor=0.25))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ProgressiveUnfreeze: 1 of 2 stages open"
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:] if line.startswith("|")
    ]
    assert cells[0] == [
        "stage", "patterns", "opens at", "tensors", "parameters", "rate factor", "trainable so far",
    ]  # fmt: skip
    assert cells[2:] == [
        ["1", "head", "start", "2", "27", "1", "27"],
        ["2", "mid, body", "1 epoch", "6", "128", "0.25", "155"],
    ]
    fit(Deep(), ProgressiveUnfreeze(stages=STAGES, at=0))
    assert capsys.readouterr().out.startswith("ProgressiveUnfreeze: 3 of 3 stages open\n")


def test_what_it_logs_and_tells():
    class Log(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, *_):
            names = ("progressive_unfreeze/stage", "progressive_unfreeze/trainable")
            self.seen.append(tuple(int(trainer.callback_metrics[name]) for name in names))

    log, unfreeze = Log(), ProgressiveUnfreeze(stages=STAGES)
    fit(Deep(), unfreeze, log)
    assert log.seen == [(1, 27)] * 5 + [(2, 99)] * 5 + [(3, 155)] * 5
    assert unfreeze.outcome() == {"stages": 3, "opened": 3, "trainable": 155}


def flags(module):
    return [p.requires_grad for p in module.parameters()], [m.training for m in module.modules()]


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end", "on_train_start", None])
def test_flags_and_modes_come_back_at_the_end_and_after_an_error(hook):
    def stop(*_):
        raise StopError

    module, plain = Deep(), Deep()
    for each in (module, plain):
        each.mid[0].bias.requires_grad_(False)
        each.body[1].eval()
    breaks = Callback()
    if hook:
        setattr(breaks, hook, stop)
    ends = []
    for each, techniques in (
        (plain, []),
        (module, [ProgressiveUnfreeze(stages=STAGES, at=[6, 7], lr_factor=1)]),
    ):
        with pytest.warns(UserWarning, match="1 module.s. in eval mode"), contextlib.suppress(StopError):
            fit(each, *techniques, breaks)
        ends.append(flags(each))
    assert ends[0] == ends[1]


def test_a_second_fit_goes_on_and_another_trainer_begins_anew():
    module, watch = Deep(), Watch()
    unfreeze = ProgressiveUnfreeze(stages=STAGES, at=["1 epoch", "3 epochs"])
    runner = trainer(unfreeze, watch, max_epochs=2)
    late = r"stage 3: at\[1\] comes at step 15, but"
    with pytest.warns(UserWarning, match=late), pytest.warns(UserWarning, match="1 never did: body"):
        runner.fit(module, Loader(), Loader(2))
    runner.fit_loop.max_epochs = 4
    runner.fit(module, Loader(), Loader(2))
    assert watch.open == ["h"] * 5 + ["hm"] * 10 + ["hmb"] * 5
    fresh = Watch()
    fit(module, unfreeze, fresh, max_epochs=4)
    assert fresh.open == watch.open


def test_moments_in_steps_need_no_length_in_manual_optimization():
    class EverySecond(TwoOptimizers):
        def training_step(self, batch, batch_idx):
            if batch_idx % 2:
                super().training_step(batch, batch_idx)

    watch = Watch()
    fit(EverySecond(), ProgressiveUnfreeze(stages=["head", "body"], at=3), watch)
    assert watch.open == ["h"] * 7 + ["hb"] * 8  # 2 steps an epoch: after batches 1 and 3


def test_each_of_two_optimizers_needs_an_open_parameter_under_a_scaler():
    with pytest.raises(
        ValueError, match=r"each optimizer must hold a parameter of stages\[0\], got none for opt.* 0"
    ):
        fit(TwoOptimizers(), ProgressiveUnfreeze(stages=["head", "body"]), plugins=[scaler_plugin()])
    both = ProgressiveUnfreeze(stages=[("head", "body.1"), "body.0"])
    module = TwoOptimizers()
    fit(module, both, plugins=[scaler_plugin()])
    assert torch.isfinite(module.head.weight).all()
