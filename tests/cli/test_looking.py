"""``lightning-tricks list``, ``card``, ``cite`` and ``completion``, as a user types them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

import lightning_tricks as lt
from lightning_tricks.cli import main
from lightning_tricks.cli.cards import card_of
from lightning_tricks.cli.commands import COMMANDS
from lightning_tricks.cli.meant import names_meant
from lightning_tricks.cli.methods import METHODS
from lightning_tricks.recipes.ready import READY
from lightning_tricks.study.sampling import SAMPLERS
from tests.contract.cases import CASES


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def read(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    return json.loads(printed(capsys, *argv, "--json"))


def test_list_shows_all_with_a_sentence_each(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "list")
    assert set(lt.__all__) <= set(re.findall(r"^(\w+) ", shown, re.MULTILINE))
    assert "Take the mean out of the gradient of each row or filter." in shown
    rows = read(capsys, "list")
    assert {row["name"] for row in rows} == set(lt.__all__)
    assert all(row["summary"].endswith((".", "?")) for row in rows)


def test_list_takes_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    def names(word: str) -> set[str]:
        return {row["name"] for row in read(capsys, "list", word)}

    assert names("technique") | names("mixin") == set(CASES)
    assert names("averaging") >= {"EMAWeights", "LAWA", "HalfLife"}
    assert {"EMAWeights", "PostHocEMA"} <= names("ema") < set(lt.__all__)


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("SAM", ["SharpnessAware"]),  # and not SampleGrid
        ("EWC", ["ElasticWeightConsolidation"]),
        ("AGC", ["AdaptiveGradientClip"]),
        ("LLRD", ["OptimizerMixin"]),
        ("SWA", ["SWAWeights"]),
        ("DropPath", ["DropoutSchedule"]),
        ("StochasticDepth", ["DropoutSchedule"]),
        ("label-smoothing", ["LabelSmoothing"]),
        ("OneCycle", ["one_cycle"]),
        ("grad clip", ["GradientClip", "AdaptiveGradientClip"]),
        ("xyzzy", []),
        ("-", []),
    ],
)
def test_what_the_field_calls_it_leads_to_its_name(word: str, names: list[str]) -> None:
    assert names_meant(word)[: len(names) or None] == names


def test_list_takes_what_the_field_calls_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "GreedySoup" in {row["name"] for row in read(capsys, "list", "model soup")}
    assert [row["name"] for row in read(capsys, "list", "EWC")] == ["ElasticWeightConsolidation"]


def test_a_card_has_all_parts_in_words_and_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "card", "GradientNoise")
    words = " ".join(shown.split())
    told = read(capsys, "card", "GradientNoise")
    for part in ("when", "changes", "logs", "saves", "cost", "use", "not", "summary"):
        assert told[part].replace("`", "") in words, part
    assert {"variance", "decay", "params", "seed", "label"} == {each["name"] for each in told["settings"]}
    assert ">>> GradientNoise(" in shown
    assert "g <- g + n" in shown
    assert "Neelakantan et al." in shown
    assert "``" not in shown
    assert ":func:" not in json.dumps(told)


def test_lines_of_code_and_formulae_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    code = [line for line in card_of("EMAWeights").parts.example.splitlines() if len(line) > 110]
    assert code
    assert code[0] in printed(capsys, "card", "EMAWeights")


def test_cite_gives_each_paper_once(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "cite", "LAWA", "PowerDecay", "PostHocEMA")
    assert shown.count("@misc") == 2
    assert "author = {Karras and others}" in shown
    assert "eprint = {2209.14981}" in shown
    assert printed(capsys, "cite", "LAWA", "--text").startswith('Kaddour, "Stop Wasting My Time!')
    assert read(capsys, "cite", "LAWA")[0]["year"] == 2022


def test_cite_without_a_name_is_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "cite")
    assert shown.startswith("@software{lightning_tricks,")
    assert f"version = {{{lt.__version__}}}" in shown
    assert "year = {20" in shown
    assert lt.__version__ in printed(capsys, "cite", "--text")
    assert read(capsys, "cite")[0]["version"] == lt.__version__


@pytest.mark.parametrize("command", ["list", "card", "cite"])
def test_examples_of_the_help_run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, command, "--help")
    calls = re.findall(rf"^  lightning-tricks ({command}.*?)(?:  .*| >.*)?$", text, re.MULTILINE)
    assert len(calls) >= 3
    for call in calls:
        assert printed(capsys, *shlex.split(call))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["card", "ema_weights"], "got 'ema_weights'; did you mean 'EMAWeights'?"),
        (["card", "GradNoise"], "got 'GradNoise'; did you mean 'GradientNoise' or "),
        (["card", "EMA"], "got 'EMA'; did you mean 'EMAWeights' or 'PostHocEMA' or"),
        (["card", "xyzzy"], "name must be one that lightning-tricks list shows, got 'xyzzy'"),
        (["card"], "name must be given; see lightning-tricks card --help"),
        (["cite", "EMAWeights", "Freez"], "got 'Freez'; did you mean 'Freeze' or 'ProgressiveUnfreeze'?"),
        (["cite", "Layerwise"], "name must be of something with a paper behind it, got 'Layerwise'"),
        (["cite", "LAWA", "--text", "--json"], "--text and --json must not go together"),
        (["list", "averagin"], "word must stand in a name, a kind, a family or a card, got 'averagin'; did"),
        (["list", ""], "word must not be empty, got ''"),
        (["list", "a", "b"], "nrecognized arguments: b; see lightning-tricks list --help"),
        (["completion", "tcsh"], "shell must be one of 'bash', 'zsh', 'fish', got 'tcsh'"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lightning-tricks: error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err


def test_words_that_are_offered_are_those_that_are_taken() -> None:
    assert tuple(COMMANDS["recipe"].words()) == tuple(READY)
    assert tuple(COMMANDS["search"].values["--sampler"]()) == tuple(SAMPLERS)
    assert sorted(COMMANDS["fuse"].values["--method"]()) == sorted(METHODS)


ASK = """
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
%s
echo "${COMPREPLY[*]}"
"""


def test_bash_completes_commands_names_options_and_values(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("shtab")
    script = tmp_path / "complete.bash"
    script.write_text(printed(capsys, "completion", "bash"))
    (function,) = re.findall(r"-F (\w+) lightning-tricks", script.read_text())
    (tmp_path / "a.ckpt").touch()
    for words, offered in (
        ("com", {"completion"}),
        ("card EMA", {"EMAWeights"}),
        ("cite EMAWeights Lo", {"Lookahead"}),
        ("cite --t", {"--text"}),
        ("list av", {"averaging"}),
        ("fuse --method gre", {"greedy_soup"}),
        ("fuse a.ckpt --alp", {"--alpha"}),
        ("fuse a", {"a.ckpt"}),
        ("search --sampler t", {"tpe"}),
        ("recipe tr", {"transformer"}),
    ):
        ask = ["bash", "-c", f"source {script}; {ASK % function}", "bash", "lightning-tricks", *words.split()]
        told = subprocess.run(ask, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        assert set(told.split()) == offered, words


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_get_scripts_with_the_same_words(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    shown = printed(capsys, "completion", shell)
    assert all(word in shown for word in ("EMAWeights", "greedy_soup", "alpha", "transformer", "tpe"))


def test_completion_without_its_package_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert 'pip install "lightning_tricks[completion]"' in capsys.readouterr().err
