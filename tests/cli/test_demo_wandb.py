import pytest
import wandb

from lightning_tricks.cli import demo_wandb


class FakeRun:
    """What ``wandb.init`` returns where no server can be asked."""

    url = "https://wandb.example/run"

    def __init__(self):
        self.ended = []

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


def test_online_runs_are_shown_by_their_address(opened, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with demo_wandb.tracking({"plain": {}}, tmp_path) as tracked:
        assert tracked.keep(tmp_path) == ["plain: https://wandb.example/run"]


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
    assert [options["mode"] for options in opened] == ["offline", "offline"]


def test_runs_of_a_failed_demo_are_closed_as_failed(opened, tmp_path):
    with pytest.raises(RuntimeError), demo_wandb.tracking({"plain": {}}, tmp_path) as tracked:
        run = tracked.runs["plain"]
        raise RuntimeError
    assert run.ended == [1]
