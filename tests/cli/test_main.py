import gc
import os
import subprocess
import sys

import pytest
import wandb

from lightning_tricks import __version__
from lightning_tricks.cli import demo as demo_module
from lightning_tricks.cli import main
from lightning_tricks.cli.demo_settings import Demo


@pytest.fixture
def calls(monkeypatch):
    """The demos that were started; none runs."""
    started = []
    monkeypatch.setattr(demo_module, "run_demo", started.append)
    return started


def test_help_shows_the_commands_and_examples(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "demo" in shown
    assert "\n  lightning-tricks demo --quick" in shown


def test_a_process_of_its_own_looks_for_no_garbage_in_what_it_loads(monkeypatch):
    seen = []
    monkeypatch.setattr("gc.freeze", lambda: seen.append("frozen"))
    monkeypatch.setattr("lightning_tricks.cli._command", lambda argv: seen.append(gc.isenabled()) or list)
    monkeypatch.setattr(sys, "argv", ["lightning-tricks"])
    assert main([]) == 0
    assert seen == [True]
    assert main() == 0
    assert seen == [True, False, "frozen"]
    assert gc.isenabled()


def test_help_of_a_command_shows_its_options(capsys):
    assert main(["demo", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: lightning-tricks demo [options]\n")
    for option in ("--output", "--seed", "--epochs", "--quick", "WANDB_MODE"):
        assert option in shown
    assert "null" not in shown  # as jsonargparse writes None
    words = " ".join(shown.split())
    assert "(default: 10, or 3 if quick)" in words
    assert "too short for the techniques to pay off: the plain run may win" in words


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-tricks {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "a command must be given, one of list, card, cite, demo, "),
        (
            ["dmeo"],
            "'search', 'ema', 'fuse', 'completion', got 'dmeo'; did you mean 'demo'?",
        ),
        (["--quick"], "nrecognized arguments: --quick; see lightning-tricks --help"),
        (["demo", "extra"], "nrecognized arguments: extra; see lightning-tricks demo --help"),
        (
            ["demo", "--epoch", "3"],
            "nrecognized arguments: --epoch 3; did you mean --epochs? see lightning-tricks demo --help",
        ),
        (["demo", "--epochs", "three"], "--epochs must be a whole number, got three; see"),
        (["demo", "--seed", "1.5"], "--seed must be a whole number, got 1.5; see"),
        (["demo", "--output"], "expected one argument; see"),
        (["demo", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["demo", "--seed", "-1"], "seed must be at least 0, got -1"),
        (["demo", "--seed", "4294967296"], "seed must lie in [0, 4294967295], got 4294967296"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(argv, message, calls, capsys):
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lightning-tricks: error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert calls == []


@pytest.mark.parametrize("mode", ["ofline", "Offline", "", "dryrun"])
def test_an_unknown_wandb_mode_is_refused_before_anything_is_done(mode, calls, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert main(["demo"]) == 2
    shown = capsys.readouterr().err
    assert "WANDB_MODE must be one of 'online', 'offline', 'disabled', got " + repr(mode) in shown
    assert ("did you mean 'offline'?" in shown) == (mode in {"ofline", "Offline"})
    assert calls == []


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_the_modes_that_are_named_are_modes_of_wandb(mode, calls, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert main(["demo"]) == 0
    assert len(calls) == 1
    assert wandb.Settings(mode=mode).mode == mode


def test_without_a_wandb_mode_nothing_is_refused(calls, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert main(["demo"]) == 0
    assert len(calls) == 1


def test_options_arrive(calls):
    assert main(["demo", "--output", "here", "--seed", "7", "--epochs", "2"]) == 0
    assert calls == [Demo(output="here", seed=7, epochs=2)]
    assert main(["demo", "--optimizer", "AdamW", "--lr", "3e-3", "--schedule", "linear(to=0.1)"]) == 0
    assert calls[1] == Demo(optimizer="AdamW", lr=0.003, schedule="linear(to=0.1)")


def test_quick_is_small_and_may_be_made_longer(calls):
    main(["demo"])
    main(["demo", "--quick"])
    main(["demo", "--quick", "--epochs", "9"])
    normal, quick, longer = calls
    assert normal == Demo()
    assert quick.epochs < normal.epochs
    assert max(quick.widths) < min(normal.widths)
    assert longer == Demo.quick(epochs=9)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "lightning-tricks: interrupted\n"),
        (
            OSError(28, "No space left on device"),
            2,
            "lightning-tricks: error: No space left on device\n",
        ),
        (
            ModuleNotFoundError("sklearn must be installed"),
            2,
            "lightning-tricks: error: sklearn must be installed\n",
        ),
    ],
)
def test_what_stops_a_command_is_told_in_one_line(error, code, message, monkeypatch, capsys):
    def stop(_):
        raise error

    monkeypatch.setattr(demo_module, "run_demo", stop)
    assert main(["demo"]) == code
    assert capsys.readouterr().err == message


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def stop(_):
        raise ValueError("a fault")

    monkeypatch.setattr(demo_module, "run_demo", stop)
    with pytest.raises(ValueError, match="a fault"):
        main(["demo"])


@pytest.mark.parametrize(
    ("argv", "unbuffered"),
    [(["schedule", "cosine()"], ""), (["list"], "1"), (["--help"], "")],
)
def test_it_ends_quietly_when_nobody_reads_on(argv, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lightning_tricks.cli", *argv]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    os.close(writer)
    assert ended.stderr == ""
    assert ended.returncode == 141
