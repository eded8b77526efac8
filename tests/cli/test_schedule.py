"""``lightning-tricks schedule``: what it prints, what it draws, and which mistakes it tells."""

from __future__ import annotations

import json
import subprocess
import sys

import matplotlib.image
import pytest

from lightning_tricks.cli import main
from lightning_tricks.cli.schedule import Preview, plot, table
from lightning_tricks.core.notation import parse

USUAL = "warmup('5%') >> cosine(to=0.1)"


def drawn(text, **settings):
    """The plot's marks by column: the rows from the bottom, of which there are 13."""
    rows = [line.partition("|")[2].ljust(72) for line in plot(Preview(text, **settings))[:13]][::-1]
    return [{row for row in range(13) if rows[row][column] == "*"} for column in range(72)]


def test_a_straight_line_is_drawn_as_one():
    columns = drawn("linear(to=0.0)", steps=7200)
    assert columns[0] == {12}
    assert columns[-1] == {0}
    for index, column in enumerate(columns):
        # Each column holds what a ruler would mark: 12 rows over 72 columns.
        assert column <= {round(12 - index / 6 + way) for way in (-0.5, -0.2, 0.0, 0.2, 0.5)}


def test_a_sudden_fall_is_drawn_from_top_to_bottom():
    columns = drawn("step(every='50%', gamma=0.25)", steps=72)
    assert columns[:36] == [{12}] * 36
    assert columns[36] == set(range(3, 13))
    assert columns[37:] == [{3}] * 35


@pytest.mark.parametrize(
    "text", ["constant(0.0)", "constant(-2.0)", "0.5", "linear(to=-1.0)", "constant(1e-9)"]
)
@pytest.mark.parametrize("steps", [1, 3, 10**6])
def test_no_column_is_empty_whatever_the_values(text, steps):
    assert all(drawn(text, steps=steps))


def test_axes_have_the_run_below_and_the_values_beside():
    lines = plot(Preview("2 * cosine(to=0.5)", steps=400, epochs=8))
    assert lines[0].split("|")[0].strip() == "2"
    assert lines[12].split("|")[0].strip() == "0"
    assert lines[-2].split() == ["step", "0", "200", "400"]
    assert lines[-1].split() == ["epoch", "0", "4", "8"]
    assert max(map(len, lines)) <= 84


def test_the_table_has_the_ends_of_parts_and_of_the_run():
    rows = [line.split()[:3] for line in table(Preview("warmup(3) >> linear(to=0.0)", steps=13, epochs=13))]
    assert rows[0] == ["step", "epoch", "value"]
    assert rows[1] == ["0", "0.00", "0.25"]
    assert ["3", "3.00", "1"] in rows
    assert rows[-2:] == [["12", "12.00", "0.1"], ["13", "13.00", "0"]]


def test_the_table_has_the_milestones():
    text = "warmup(3) >> multistep([7, '43%', 88, 200], gamma=0.5, over=80) >> constant(over=9)"
    rows = [line.split()[:2] for line in table(Preview(text, steps=100))]
    at = {int(step): float(value) for step, value in rows[1:]}
    assert (at[7], at[43]) == (0.5, 0.25)
    fixed = {0, 10, 25, 50, 75, 90, 99, 100}
    assert set(at) == fixed | {3, 7, 43, 83, 92}


def test_it_prints_plot_and_table(capsys):
    assert main(["schedule", USUAL]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.splitlines()[1] == USUAL
    assert "after the last step" in shown.out
    assert shown.out.isascii()


def test_json_has_the_values_of_the_table(capsys):
    assert main(["schedule", "linear(to=0.5)", "--steps", "100", "--epochs", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["text"], told["steps"], told["epochs"], told["png"]) == ("linear(to=0.5)", 100, 4, None)
    assert {"step": 50, "epoch": 2.0, "value": 0.75} in told["values"]
    assert told["notes"] == []


def test_what_lies_past_the_end_is_noted(capsys):
    assert main(["schedule", "warmup(20) >> multistep([30, 50])", "--steps", "50"]) == 0
    told = "milestone 50 of multistep([30, 50]) is step 50, but the run has 50 steps: it has no effect"
    assert capsys.readouterr().out.endswith(f"\nnote: {told}\n")
    assert main(["schedule", "warmup(20) >> multistep([30, 49])", "--steps", "50"]) == 0
    assert "note" not in capsys.readouterr().out


def test_options_arrive(capsys):
    assert main(["schedule", "step(every='1 epoch', gamma=0.5)", "--steps", "20", "--epochs", "4"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["5", "1.00", "0.5"] in rows
    assert ["15", "3.00", "0.125"] in rows


@pytest.mark.parametrize("epochs", [[], ["--epochs", "90"]])
def test_the_picture_is_drawn(epochs, tmp_path, capsys):
    path = tmp_path / "out.png"
    assert main(["schedule", USUAL, "--png", str(path), *epochs]) == 0
    picture = matplotlib.image.imread(path)
    assert picture.shape[:2] == (600, 1200)
    blue = (abs(picture[..., :3] - [0.0, 0x72 / 255, 0xB2 / 255]) < 0.02).all(axis=-1)
    found = blue.nonzero()[1]
    assert found.max() - found.min() > 1000  # the curve goes from side to side
    assert f"written: {path}" in capsys.readouterr().out


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["schedule", USUAL, "--png", str(tmp_path / "a.png")]) == 2
    assert 'pip install "lightning_tricks[plots]"' in capsys.readouterr().err
    assert main(["schedule", USUAL]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["warmup("],
            "schedule must be a number or written like warmup('5%') >> cosine(to=0.1), got 'warmup('",
        ),
        (["cosin(to=0.1)"], "not 'cosin'; did you mean 'cosine'?"),
        (["step(every=0)"], "every must be above 0, got 0"),
        (["step(every='1 epoch')"], "every must be in steps, since --epochs is not given, got '1 epoch'"),
        (["inverse_sqrt()"], "timescale must be given where no warm-up comes before"),
        ([], "error: text must be given; see lightning-tricks schedule --help"),
        (
            [USUAL, "--steps", "many"],
            "--steps must be a whole number, got many; see lightning-tricks schedule",
        ),
        ([USUAL, "--steps", "0"], "steps must be at least 1, got 0"),
        ([USUAL, "--epochs", "2000"], "epochs must be at most steps, 1000, got 2000"),
        ([USUAL, "--step", "5"], "did you mean --steps? see lightning-tricks schedule --help"),
        ([USUAL, "--png", ""], "png must not be empty"),
        ([USUAL, "--png", "no/such/folder/a.png"], "No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(argv, message, capsys):
    assert main(["schedule", *argv]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lightning-tricks: error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err


def test_help_shows_examples_that_run(capsys):
    assert main(["schedule", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: lightning-tricks schedule TEXT [options]\n")
    examples = [line.split('"') for line in shown.splitlines() if line.startswith("  lightning-tricks")]
    assert len(examples) == 4
    for _, text, options in examples:
        parse(text)
        assert main(["schedule", text, *options.replace("--png out.png", "").split()]) == 0


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "lightning_tricks.cli", "schedule", "cosine(", "--steps", "5"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
