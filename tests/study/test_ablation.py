"""An ablation as a whole: its arms, what it measures, how it goes on, what it refuses."""

from __future__ import annotations

import pytest
import wandb
from lightning.pytorch import Callback

from lightning_tricks import Ablation, EMAWeights, GradientClip
from lightning_tricks.study import ablation as module
from lightning_tricks.study import working
from lightning_tricks.study.queue import attempts
from lightning_tricks.study.report import draw_effects
from lightning_tricks.study.trial import run_trial
from lightning_tricks.study.wandb_runs import WandbGroup
from tests import wandb_offline
from tests.study.small import QUIET, build

NAMES = {"EMA": EMAWeights(decay=0.5), "clip": lambda: GradientClip(max_norm=0.1)}


def ablation(path, techniques=None, **options):
    return Ablation(build, techniques or NAMES, **{"seeds": 2, "storage": path / "study.journal", **options})


@pytest.fixture
def trained(monkeypatch):
    """The arms and seeds that were really trained."""
    seen = []

    def run(build, techniques, **options):
        seen.append((tuple(type(each).__name__ for each in techniques), options["seed"]))
        return run_trial(build, techniques, **options)

    monkeypatch.setattr(module, "run_trial", run)
    return seen


def test_each_arm_is_trained_with_each_seed_and_goes_on_where_it_was(tmp_path, trained, capsys):
    first = ablation(tmp_path).run()
    arms = [(), ("EMAWeights", "GradientClip"), ("GradientClip",), ("EMAWeights",)]
    # Each seed begins with another arm, so that none is always the first.
    assert trained == [(arm, 0) for arm in arms] + [(arm, 1) for arm in [*arms[1:], arms[0]]]
    assert len(first.outcomes) == first.wanted == 8
    expected = run_trial(build, [EMAWeights(decay=0.5)], seed=1, metric="val_loss").value
    assert first.values(("EMA",))[1] == expected
    del trained[:]
    assert "had ended before" not in capsys.readouterr().out
    assert ablation(tmp_path).run().plain() == first.plain()
    assert capsys.readouterr().out == "8 of 8 trials had ended before\n"
    assert trained == []
    more = ablation(tmp_path, seeds=3).run()
    assert trained == [(arm, 2) for arm in [*arms[2:], *arms[:2]]]
    assert more.outcomes[:8] == first.outcomes
    assert ablation(tmp_path).run().plain() == more.plain()  # which fewer seeds do not take away


def test_techniques_that_exclude_one_another_are_refused_before_any_trial(tmp_path, trained):
    both = {"a": GradientClip(), "b": GradientClip(max_norm=2.0, label="b")}
    with pytest.raises(ValueError, match="techniques must go together to be measured: .*'clipping'"):
        ablation(tmp_path, both).run()
    assert trained == []


class Fatal(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.max_epochs == 2:  # and not in the rehearsal
            raise RuntimeError("no\nmore")


def test_a_trial_that_dies_is_recorded_and_not_tried_again(tmp_path, trained):
    found = ablation(tmp_path, {"EMA": EMAWeights(decay=0.5), "fatal": Fatal}).run()
    assert [(each.arm, each.seed, each.error) for each in found.dead] == [
        (arm, seed, "RuntimeError: no more") for seed in (0, 1) for arm in ("all", "without EMA")
    ]
    ema = found.rows[1]
    assert (ema.alone.pairs, ema.among) == (2, None)
    count = len(trained)
    assert ablation(tmp_path, {"EMA": EMAWeights(decay=0.5), "fatal": Fatal}).run().dead == found.dead
    assert len(trained) == count


def test_interrupted_it_gives_its_trial_back(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for _ in range(4):
        monkeypatch.setattr(module, "run_trial", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ablation(tmp_path).run()
        monkeypatch.undo()
    found = ablation(tmp_path)
    assert len(found.run().outcomes) == 8
    assert [len(chain) for chain in attempts(found.queue().trials()).values()] == [5] + [1] * 7


def test_whether_more_is_better_is_known_of_a_loss_only(tmp_path):
    assert ablation(tmp_path).mode == "min"
    with pytest.raises(ValueError, match="mode must be given for 'val_acc', if that is its name, 'min'"):
        ablation(tmp_path, metric="val_acc")
    assert ablation(tmp_path, metric="val_acc", mode="max").mode == "max"


@pytest.mark.parametrize(
    ("techniques", "options", "message"),
    [
        ({**NAMES, "EMA": EMAWeights(decay=0.9)}, {}, "techniques.EMA.decay must be '0.5', .* got '0.9'"),
        (
            {"EMA": EMAWeights(decay=0.5)},
            {},
            "techniques.clip.class must be 'GradientClip'.* got 'not given'",
        ),
        (None, {"mode": "max"}, "mode must be 'min', as the study 'ablation' was begun, got 'max'"),
        (None, {"settings": {"data": "other"}}, "data must be 'not given'"),
        (
            None,
            {"build": lambda seed: (*build(seed)[:2], {**QUIET, "max_epochs": 3})},
            "trainer.max_epochs must",
        ),
    ],
)
def test_another_configuration_is_refused_by_name(techniques, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "rehearse", lambda *_, **__: None)
    ablation(tmp_path).queue()
    other = ablation(tmp_path, techniques, **{key: value for key, value in options.items() if key != "build"})
    other.build = options.get("build", build)
    with pytest.raises(ValueError, match=message):
        other.run()


def test_settings_may_be_nested_and_hold_tuples(tmp_path):
    settings = {"data": {"classes": (3, 5), "noise": 0.2}}
    for _ in range(2):
        ablation(tmp_path, settings=settings).queue()
    settings["data"]["classes"] = (3, 8)
    with pytest.raises(ValueError, match=r"data\.classes must be '\(3, 5\)', .* got '\(3, 8\)'"):
        ablation(tmp_path, settings=settings).queue()


def test_what_cannot_be_trained_leaves_no_study(tmp_path):
    def broken(seed):
        raise OSError("no such data")

    for wrong, message in (
        (
            Ablation(broken, NAMES, storage=tmp_path / "a.journal"),
            "must run to be measured: OSError: no such",
        ),
        (
            Ablation(build, NAMES, metric="va_loss", storage=tmp_path / "a.journal"),
            "did you mean 'val_loss'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            wrong.run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("techniques", "options", "message"),
    [
        ({}, {}, "techniques must hold at least one"),
        (
            [GradientClip(), GradientClip(max_norm=2.0)],
            {},
            "must be given by name where two are of one class",
        ),
        ({"clip": 3}, {}, "must be callbacks or functions that make one, got clip=3"),
        (NAMES, {"seeds": 0}, "seeds must be at least 1"),
        (NAMES, {"seeds": [1, 1]}, "seeds must be different ones"),
        (NAMES, {"mode": "less"}, "mode must be one of 'min', 'max'"),
    ],
)
def test_wrong_arguments_are_told(techniques, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Ablation(build, techniques, **options)


def test_it_tells_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(working, "LOOK_SECONDS", 0.01)
    seen = []
    ablation(tmp_path).run(seen.append)
    assert seen[-1] == (8, 0, 8, ())
    assert {running for progress in seen for running in progress.running} >= {"none, seed 0"}


@pytest.mark.usefixtures("wandb_is_offline")
def test_each_trial_is_a_run_of_one_group(tmp_path):
    group = WandbGroup("digits", folder=tmp_path / "runs")
    found = ablation(tmp_path, {"fatal": Fatal}, seeds=1, wandb=group).run()
    draw_effects(found, tmp_path / "effects.png")
    group.report(found, tmp_path / "effects.png")
    wandb.teardown()  # the service writes the end of its files when it ends
    files = sorted((tmp_path / "runs").rglob("*.wandb"))
    heads = [record.run for path in files for record in wandb_offline.records(path) if record.run.run_id]
    assert {head.run_group for head in heads} == {"digits"}
    names = [head.display_name for head in heads]
    assert sorted(set(names)) == ["all, seed 0", "digits: effects", "none, seed 0"]
    by_name = dict(zip(names, files, strict=False))
    plain = by_name["none, seed 0"]
    assert wandb_offline.config(plain)["arm"] == "none"
    assert len(wandb_offline.history(plain)["val_loss"]) >= 2
    assert wandb_offline.summary(plain)["value"] == found.values(())[0]
    shown = wandb_offline.history(by_name["digits: effects"])
    assert {"effects", "figure"} <= {name.partition("/")[0] for name in shown}
