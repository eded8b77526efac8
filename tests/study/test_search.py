"""A search as a whole: what it tries, what it finds, how it goes on, what it refuses."""

from __future__ import annotations

import statistics
from contextlib import closing
from types import SimpleNamespace

import pytest
import wandb

from lightning_tricks import EMAWeights, GradientClip
from lightning_tricks.study import search as module
from lightning_tricks.study import trying, working
from lightning_tricks.study.folds import folded
from lightning_tricks.study.queue import attempts
from lightning_tricks.study.sampling import _POPULATION, _STARTUP, Drawing
from lightning_tricks.study.search_report import draw_search, log_search
from lightning_tricks.study.space import Space
from lightning_tricks.study.trial import StudyError, run_trial
from lightning_tricks.study.trying import Trying
from lightning_tricks.study.wandb_runs import WandbGroup
from tests import wandb_offline
from tests.study.bowl import SPACE, bowl, search


def settled(found):
    """What does not depend on how fast it was."""
    return [(each.number, each.settings, each.outcome, each.value, each.error) for each in found.trials]


@pytest.fixture(scope="module")
def by_chance(tmp_path_factory):
    return search(tmp_path_factory.mktemp("random"), sampler="random", pruner="none").run()


def test_the_first_trial_is_the_default_and_the_best_is_better(by_chance):
    assert len(by_chance.trials) == by_chance.wanted == 12
    assert by_chance.default.settings == {"x": 0.0, "y": 1}
    assert by_chance.default.value == pytest.approx(9.0 + 1.0 + 0.08)  # of the weights that were left
    best = min(each.value for each in by_chance.trials)
    assert by_chance.best.value == best == by_chance.default.value - by_chance.gain < 5.0
    assert by_chance.best.value == pytest.approx(
        (by_chance.best.settings["x"] - 3.0) ** 2 + by_chance.best.settings["y"] + 0.08
    )
    assert by_chance.changed(by_chance.default) == {}
    assert next(iter(by_chance.importance)) == "x"
    assert sum(by_chance.importance.values()) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 16), ("gp", 9), ("evolutionary", 12)])
def test_samplers_begin_by_chance_and_then_learn(sampler, trials, by_chance, tmp_path):
    found = search(tmp_path, sampler=sampler, pruner="none", trials=trials).run()
    points, others = ([each.settings for each in run.trials] for run in (found, by_chance))
    assert points[: _STARTUP - 1] == others[: _STARTUP - 1]
    assert points[_STARTUP:] != others[_STARTUP : len(points)]
    assert all(-10.0 <= point["x"] <= 10.0 and point["y"] in (0, 1, 2) for point in points)
    values = [point["x"] for point in points]
    if sampler == "evolutionary":
        assert set(values[_POPULATION + 1 :]) & set(values[:_POPULATION])  # inherited
    else:
        assert statistics.median(abs(x - 3.0) for x in values[len(points) // 2 :]) < 4.0  # by chance, 5


def test_more_is_better_where_it_is(tmp_path):
    found = search(tmp_path, mode="max", sampler="random", trials=6, pruner="none").run()
    assert found.best.value == max(each.value for each in found.trials)
    assert found.gain == found.best.value - found.default.value > 0


def test_a_grid_is_gone_through_once_and_the_rest_is_left(tmp_path):
    space = {
        "x": [0.0, 3.0],
        "techniques": {"GradientClip": {"optional": True, "max_norm": [0.5, 1.0, 2.0]}},
    }
    found = search(tmp_path, space, sampler="grid", pruner="none").run()
    points = [tuple(each.settings.items()) for each in found.trials]
    assert len(points) == len(set(points)) == found.wanted == 2 * (1 + 3)
    assert found.trials[0].settings == {"x": 0.0, "GradientClip": False}
    assert found.best.settings["x"] == 3.0


def test_no_point_is_tried_twice_by_chance(tmp_path):
    space = {"x": [0.0, 1.0], "techniques": {"GradientClip": {"optional": True, "max_norm": [0.5, 1.0]}}}
    found = search(tmp_path, space, sampler="random", pruner="none").run()
    assert len({tuple(each.settings.items()) for each in found.trials}) == found.wanted == 6


def test_techniques_are_switched_on_and_set(tmp_path, monkeypatch):
    seen = []

    def run(build, techniques, **options):
        seen.append(techniques[:-1])  # the last one reports to the pruner
        return run_trial(build, techniques, **options)

    monkeypatch.setattr(trying, "run_trial", run)
    space = {
        "techniques": {
            "EMA": {"optional": True, "decay": [0.5, 0.9]},
            "GradientClip": {"optional": True, "max_norm": [2.0]},
        }
    }
    techniques = {"EMA": EMAWeights(decay=0.9, every=2), "still": GradientClip(max_norm=7.0)}
    found = search(tmp_path, space, techniques=techniques, sampler="grid", pruner="none").run()
    assert found.trials[0].settings == {"EMA": True, "EMA.decay": 0.9, "GradientClip": False}
    for trial, callbacks in zip(found.trials, seen, strict=True):
        by_kind = {type(each).__name__ + str(getattr(each, "max_norm", "")): each for each in callbacks}
        assert "GradientClip7.0" in by_kind
        assert ("GradientClip2.0" in by_kind) == trial.settings["GradientClip"]
        assert ("EMAWeights" in by_kind) == trial.settings["EMA"]
        if trial.settings["EMA"]:
            assert by_kind["EMAWeights"].decay == trial.settings["EMA.decay"]
            assert by_kind["EMAWeights"].every == 2


def test_a_trial_that_dies_or_diverges_is_recorded_and_not_fatal(tmp_path):
    space = {"fails": ["no", "raises", "diverges"], "y": [1, 0]}
    found = search(tmp_path, space, sampler="grid").run()
    errors = {each.settings["fails"]: each.error for each in found.trials}
    assert errors == {
        "no": None,
        "raises": "RuntimeError: no more",
        "diverges": "ValueError: val_loss was nan in validation 1",
    }
    assert [each.outcome for each in found.trials].count("died") == 4
    assert (len(found.trials), len(found.ranked), found.best.settings["y"]) == (6, 2, 0)
    assert settled(search(tmp_path, space, sampler="grid").run()) == settled(found)


def test_worse_trials_are_pruned_from_the_validation_loop(tmp_path):
    space = {"x": [3.0, 2.9, 2.8, 2.7, 2.6, 9.0, 9.5]}

    def build(seed, x=3.0):
        return bowl(seed, x=x, epochs=4)

    found = search(tmp_path, space, build, sampler="grid", seed=1).run()
    outcomes = {each.settings["x"]: each.outcome for each in found.trials}
    late = {each.settings["x"] for each in found.trials[5:]}
    assert late & {9.0, 9.5}
    for x in late:
        assert outcomes[x] == ("pruned" if x > 3.0 else "done") or x < 3.0
    pruned = next(each for each in found.trials if each.outcome == "pruned")
    assert pruned.value == pytest.approx((pruned.settings["x"] - 3.0) ** 2 + 1 + 0.09)  # after two epochs
    assert pruned not in found.ranked
    whole = search(tmp_path, space, build, sampler="grid", pruner="none", name="whole").run()
    assert {each.outcome for each in whole.trials} == {"done"}


def test_interrupted_it_goes_on_as_it_would_have(tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    whole = search(tmp_path / "whole", trials=9).run()
    count = []

    def interrupted(*args, **options):
        count.append(0)
        if len(count) % 4 == 0:
            raise KeyboardInterrupt
        return run_trial(*args, **options)

    monkeypatch.setattr(trying, "run_trial", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, trials=9).run()
    found = search(tmp_path, trials=9).run()
    assert settled(found) == settled(whole)
    monkeypatch.undo()
    more = search(tmp_path, trials=10).run()
    assert settled(more)[:9] == settled(whole)
    assert len(more.trials) == more.wanted == 10


def test_what_another_began_at_the_same_moment_is_not_tried_again(tmp_path, monkeypatch):
    space = {"y": [1, 0, 2]}
    first, second = (search(tmp_path, space, sampler="random") for _ in range(2))
    queue = first.queue()
    monkeypatch.setattr(Drawing, "draw", lambda self, *_, tried, **__: {"y": 0 if len(tried) < 2 else 2})
    with queue.claim(["trial 1"]) as claim:
        first._trying._point(queue, claim)
        monkeypatch.setattr(Trying, "_tried", blind(Trying._tried))
        other = second.queue()
        taken = other.claim(["trial 2"])
        second._trying.one(other, taken)
        assert [trial.state.name for trial in attempts(other.trials())["trial 2"]] == ["FAIL"]
        with other.claim(["trial 2"]) as again:  # given back, and drawn anew
            assert second._trying._point(other, again) == {"y": 2}


def blind(tried):
    """As when the other's point is not yet stored when this one draws."""
    calls = []

    def seen(self, *args):
        calls.append(0)
        return [] if len(calls) == 1 else tried(self, *args)

    return seen


def test_no_trial_is_begun_after_the_time(tmp_path, monkeypatch):
    clock = iter(range(100))
    seconds = SimpleNamespace(monotonic=lambda: next(clock))
    for each in (module, working):
        monkeypatch.setattr(each, "time", seconds)
    found = search(tmp_path, timeout=4.0).run()
    assert (len(found.trials), found.wanted) == (3, 12)


def test_folds_are_measured_by_their_mean(tmp_path):
    from tests.study.test_folds import Data
    from tests.toys import Toy

    def build(seed, lr=0.1):
        return Toy(lr=lr), Data(), {"accelerator": "cpu", "devices": 1, "max_epochs": 1}

    found = search(tmp_path, {"lr": [0.1, 0.01]}, build, sampler="grid", folds=3, seed=5).run()
    for each in found.trials:
        values = [
            run_trial(
                folded(lambda seed, lr=each.settings["lr"]: build(seed, lr), fold=fold, folds=3, seed=5),
                [],
                seed=5,
                metric="val_loss",
            ).value
            for fold in range(3)
        ]
        assert each.value == pytest.approx(sum(values) / 3)
        assert len(set(values)) == 3
    with pytest.raises(StudyError, match="folds must be left out"):
        search(tmp_path, name="other", folds=3).run()


@pytest.mark.usefixtures("wandb_is_offline")
def test_each_trial_is_a_run_of_one_group(tmp_path):
    group = WandbGroup("bowls", folder=tmp_path / "runs")
    found = search(tmp_path, {"fails": ["no", "raises"]}, sampler="grid", wandb=group).run()
    draw_search(found, tmp_path / "search.png")
    log_search(group, found, tmp_path / "search.png")
    wandb.teardown()  # the service writes the end of its files when it ends
    files = sorted((tmp_path / "runs").rglob("*.wandb"))
    heads = [record.run for path in files for record in wandb_offline.records(path) if record.run.run_id]
    assert {head.run_group for head in heads} == {"bowls"}
    by_name = dict(zip([head.display_name for head in heads], files, strict=False))
    assert set(by_name) == {"trial 0", "trial 1", "bowls: search"}
    assert wandb_offline.config(by_name["trial 1"])["fails"] == "raises"
    assert len(wandb_offline.history(by_name["trial 0"])["val_loss"]) >= 2
    assert wandb_offline.summary(by_name["trial 0"])["value"] == found.best.value
    shown = wandb_offline.history(by_name["bowls: search"])
    assert {"trials", "figure"} <= {name.partition("/")[0] for name in shown}
    assert wandb_offline.summary(by_name["bowls: search"])["best"] == found.best.value


def test_trials_and_searches_draw_different_numbers(tmp_path):
    with closing(search(tmp_path).queue()) as queue:
        study, trial, default = queue.study(), queue.trials()[3], {"x": 0.0, "y": 1}
        space = Space.of(SPACE)

        def drawn(place, seed):
            drawing = Drawing(space, "random", seed)
            return drawing.draw(study, trial, place=place, tried=[], default=default)["x"]

        values = [drawn(place, seed) for place in (1, 2) for seed in (0, 1)]
        assert len(set(values)) == 4
        assert values[0] == drawn(1, 0)
