from types import SimpleNamespace

import pytest
import wandb
from click.testing import CliRunner
from matplotlib.image import imsave
from wandb.cli.cli import cli

from lightning_tricks.cli import demo_wandb


class FakeRun:
    """What ``wandb.init`` returns where no server can be asked."""

    url = "https://wandb.example/run"

    def __init__(self):
        self.ended, self.settings = [], SimpleNamespace(sync_dir="nowhere")
        self.offline = False

    def define_metric(self, *_, **__): ...

    def finish(self, exit_code=0):
        self.ended.append(exit_code)


@pytest.fixture
def opened(monkeypatch):
    """The options of each ``wandb.init``; online fails unless the test says otherwise."""
    wandb.teardown()
    calls = []

    def init(**options):
        calls.append(options)
        return FakeRun()

    monkeypatch.setattr(wandb, "init", init)
    yield calls
    # What it read of the environment, it would keep for the process.
    wandb.teardown()


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "a" * 40}, "online"),
        ({"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_the_account_and_wandb_mode_decide(environment, mode, opened, monkeypatch, tmp_path):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with demo_wandb.tracking({"plain": {}, "techniques": {}}, tmp_path):
        pass
    assert [options["mode"] for options in opened] == [mode, mode]


def test_a_key_in_netrc_is_an_account(opened, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {'b' * 40}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    with demo_wandb.tracking({"plain": {}}, tmp_path):
        pass
    assert opened[0]["mode"] == "online"


def test_without_network_the_runs_are_offline_and_the_reason_is_given(opened, monkeypatch, tmp_path):
    fake = wandb.init

    def no_network(**options):
        if options["mode"] == "online":
            raise wandb.errors.CommError("no such host\nand more")
        return fake(**options)

    monkeypatch.setattr(wandb, "init", no_network)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with demo_wandb.tracking({"plain": {}, "techniques": {}}, tmp_path) as tracked:
        assert (tracked.how.mode, tracked.how.why_offline) == ("offline", "no such host")
        assert tracked.how.kept == ["nowhere", "nowhere"]
    assert [options["mode"] for options in opened] == ["offline", "offline"]


def test_runs_of_a_failed_demo_are_closed_as_failed(opened, tmp_path):
    with pytest.raises(RuntimeError), demo_wandb.tracking({"plain": {}}, tmp_path) as tracked:
        run = tracked.runs["plain"]
        raise RuntimeError
    assert run.ended == [1]


def train_and_finish(tracked, folder, last=lambda: None):
    """Log a value to the first phase of each run, and what comes at the end."""
    imsave(folder / "demo.png", [[0.0]])
    for index, name in enumerate(tracked.runs):
        tracked.loggers(name, 2)[0].log_metrics({"loss": 0.5 + index}, step=3)
    last()
    tracked.finish(folder / "demo.png", {"plain": {"final": 0.25}, "techniques": {"final": 0.5}})


def test_both_runs_arrive_online_and_their_addresses_are_shown(tmp_path, wandb_online):
    configs = {"plain": {"seed": 3}, "techniques": {"seed": 4}}
    with demo_wandb.tracking(configs, tmp_path / "part") as tracked:
        train_and_finish(tracked, tmp_path)
    found = wandb_online.named()
    assert sorted(found) == ["plain", "techniques"]
    for index, name in enumerate(configs):
        run = found[name]
        assert (run.head["project"], run.config["seed"]) == ("lightning-tricks-demo", 3 + index)
        assert run.history("phase1-loss") == [0.5 + index]
        assert run.history("trainer/global_step")[0] == 3
        assert (run.summary["final"], run.exit_code) == ((index + 1) / 4, 0)
        assert run.file("figure") == (tmp_path / "demo.png").read_bytes()
    lines = tracked.keep(tmp_path / "runs")
    project = f"{wandb_online.url}/somebody/lightning-tricks-demo/runs"
    assert lines == [
        f"{run.head['displayName']}: {project}/{name}" for name, run in wandb_online.runs.items()
    ]
    assert len(list((tmp_path / "runs").glob("run-*"))) == 2  # as W&B leaves them, too


def test_runs_that_a_server_did_not_take_are_kept_and_can_be_uploaded(tmp_path, wandb_online, monkeypatch):
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    monkeypatch.chdir(tmp_path)  # where ``wandb sync`` writes its log
    with demo_wandb.tracking({"plain": {}, "techniques": {}}, tmp_path / "part") as tracked:
        train_and_finish(tracked, tmp_path, last=lambda: setattr(wandb_online, "broken", 0))
    *addresses, told, command = tracked.keep(tmp_path / "runs")
    assert len(addresses) == 2
    assert told == "Not all runs are online (uploading took more than 1 s); upload them with"
    wandb_online.broken = None
    arguments = command.removeprefix("wandb ").split()
    assert sorted(arguments[2:]) == sorted(map(str, (tmp_path / "runs").iterdir()))
    CliRunner().invoke(cli, arguments, catch_exceptions=False)
    for index, run in enumerate(wandb_online.runs.values()):
        assert (run.history("phase1-loss"), run.summary["final"]) == ([0.5 + index], (index + 1) / 4)
