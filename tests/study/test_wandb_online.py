"""Studies that W&B's own client logs online, to a server on loopback that also dies and refuses."""

from __future__ import annotations

import pytest
import wandb
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_tricks import Ablation
from lightning_tricks.study.report import draw_effects, table_rows
from lightning_tricks.study.search_report import draw_search, log_search
from lightning_tricks.study.trial import run_trial
from lightning_tricks.study.wandb_runs import WandbGroup, quiet_settings
from tests import wandb_offline
from tests.study.bowl import search
from tests.study.small import build


class Kept(DummyLogger):
    """Keeps the rows that are logged."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append({**metrics, "trainer/global_step": step})


class Act(Callback):
    """Calls something in the middle of a training that is logged."""

    def __init__(self, act):
        self.act = act

    def on_train_epoch_end(self, trainer, *_):
        if not isinstance(trainer.logger, DummyLogger):  # the rehearsal's
            self.act()


def fail():
    raise RuntimeError("no more")


def rows(run):
    """Return what was logged, without what W&B adds."""
    return [
        {name: value for name, value in row.items() if name[0] != "_"} for _, row in sorted(run.rows.items())
    ]


def test_trials_of_an_ablation_arrive_in_one_group(tmp_path, wandb_online):
    told = []
    group = WandbGroup("digits", folder=tmp_path, tell=told.append)
    storage = tmp_path / "study.journal"
    found = Ablation(build, {"fatal": lambda: Act(fail)}, seeds=1, storage=storage, wandb=group).run()
    draw_effects(found, tmp_path / "effects.png")
    group.report(found, tmp_path / "effects.png")
    runs = wandb_online.named()
    assert sorted(runs) == ["all, seed 0", "digits: effects", "none, seed 0"]
    for run in runs.values():
        assert (run.head["groupName"], run.head["project"]) == ("digits", "lightning-tricks-study")
    plain, died, effects = runs["none, seed 0"], runs["all, seed 0"], runs["digits: effects"]
    assert (plain.exit_code, died.exit_code, effects.exit_code) == (0, 1, 0)
    assert (plain.config["arm"], plain.config["seed"], died.config["arm"]) == ("none", 0, "all")
    kept = Kept()
    run_trial(build, [], seed=0, metric="val_loss", logger=kept)
    assert rows(plain) == kept.rows != []
    assert plain.summary["value"] == found.values(())[0]
    assert effects.table("effects") == [list(row) for row in table_rows(found)[1:]]
    assert effects.file("figure") == (tmp_path / "effects.png").read_bytes()
    assert told == []


def test_trials_of_a_search_arrive_in_one_group(tmp_path, wandb_online):
    group = WandbGroup("bowls", folder=tmp_path)
    found = search(tmp_path, {"y": [1, 0]}, sampler="grid", wandb=group).run()
    draw_search(found, tmp_path / "search.png")
    log_search(group, found, tmp_path / "search.png")
    runs = wandb_online.named()
    assert sorted(runs) == ["bowls: search", "trial 0", "trial 1"]
    assert {run.head["groupName"] for run in runs.values()} == {"bowls"}
    for trial in found.trials:
        run = runs[f"trial {trial.number}"]
        assert run.config["y"] == trial.settings["y"]
        assert run.history("val_loss")[-1] == run.summary["value"] == trial.value
    assert runs["bowls: search"].summary["best"] == found.best.value
    assert [row[0] for row in runs["bowls: search"].table("trials")] == ["1", "0"]


@pytest.mark.parametrize("broken", [0, 401])
def test_no_trial_waits_for_a_server_that_is_gone_or_is_lost_by_it(
    broken, tmp_path, wandb_online, monkeypatch, capfd
):
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    told = []

    def breaking(seed):
        module, loaders, settings = build(seed)
        act = Act(lambda: setattr(wandb_online, "broken", broken))
        return module, loaders, {**settings, "callbacks": [act]}

    group = WandbGroup("digits", folder=tmp_path, tell=told.append)
    storage = tmp_path / "study.journal"
    found = Ablation(breaking, {"fatal": lambda: Act(fail)}, seeds=1, storage=storage, wandb=group).run()
    assert [outcome.error for outcome in found.outcomes] == [None, "RuntimeError: no more"]
    [(name, run)] = wandb_online.runs.items()
    assert run.exit_code is None  # it was never heard of again
    wandb.teardown()  # the service writes the end of its files when it ends
    [online] = tmp_path.glob(f"wandb/run-*-{name}/*.wandb")
    [offline] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert wandb_offline.summary(online)["value"] == found.values(())[0]
    assert len(wandb_offline.history(online)["val_loss"]) > 2
    assert wandb_offline.config(offline)["arm"] == "all"
    assert told[-1].endswith(f"upload them with: wandb sync {tmp_path}/wandb/offline-run-*")
    assert "wandb: WARNING" in capfd.readouterr().err
    if broken == 0:  # a key that is refused ends the upload at once, of which W&B alone warns
        assert told[0].endswith(f"upload it with: wandb sync --include-online {online.parent}")
        assert "'none, seed 0' is in Weights & Biases (uploading took more than 1 s)" in told[0]


def test_a_key_that_is_refused_is_told_and_the_study_goes_on_offline(tmp_path, wandb_online, capfd):
    wandb_online.broken = 401
    run = WandbGroup("a b", folder=tmp_path / "x y").run("trial", {})
    expected = "logs runs of 'a b' offline (.*refused.*).*wandb sync '.*/x y'/wandb/offline-run-"
    with pytest.warns(UserWarning, match=expected), run as logger:
        logger.log_metrics({"loss": 1.0})
    wandb.teardown()
    assert capfd.readouterr().out == ""  # which may be read as JSON
    assert len(list(tmp_path.glob("x y/wandb/offline-run-*/*.wandb"))) == 1


def test_a_table_that_is_refused_is_told(tmp_path, wandb_online, monkeypatch):
    def picture(path):  # made when the run is open already
        wandb_online.broken = 401
        return path

    monkeypatch.setattr(wandb, "Image", picture)
    told = []
    group = WandbGroup("digits", folder=tmp_path, tell=told.append)
    group.conclude("search", {}, shown="trials", rows=[["a"], [1]], picture="a.png", summary={})
    [message] = told
    assert message.startswith("the table of trials is not in Weights & Biases (AuthenticationError: ")


def test_a_run_waits_a_minute_unless_told_otherwise(wandb_online, monkeypatch):
    assert quiet_settings().finish_timeout == wandb.setup().settings.finish_timeout == 60.0
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "7")
    wandb.teardown()
    quiet_settings()
    assert wandb.setup().settings.finish_timeout == 7.0
