"""ProgressiveUnfreeze from the words of a command line."""

from __future__ import annotations

import pytest

from lightning_tricks.network.openings import Plateau
from lightning_tricks.network.unfreeze import ProgressiveUnfreeze
from tests.toys import Toy
from tests.yaml_trainer import yaml_trainer


def built(*words: str) -> ProgressiveUnfreeze:
    """Return the technique that LightningCLI builds of ``words``, the settings after its name."""
    named = [f"--trainer.callbacks.{word}" for word in ("stages=[head,[mid,body]]", *words)]
    runner = yaml_trainer(
        ["--trainer.accelerator=cpu", "--trainer.callbacks+=lightning_tricks.ProgressiveUnfreeze", *named],
        Toy,
    )
    return next(each for each in runner.callbacks if isinstance(each, ProgressiveUnfreeze))


@pytest.mark.parametrize("name", ["lightning_tricks.Plateau", "Plateau"])
def test_a_policy_is_named_by_its_class_and_set_by_its_fields(name):
    unfreeze = built(f"at={name}", "at.monitor=val_loss", "at.patience=3", "at.mode=max")
    assert unfreeze.at == Plateau("val_loss", patience=3, mode="max")
    assert unfreeze.stages == ["head", ("mid", "body")]


@pytest.mark.parametrize(
    ("word", "at"),
    [("4", 4), ("20%", "20%"), ("1 epoch", "1 epoch"), ("[3]", [3]), ("[2 epochs]", ["2 epochs"])],
)
def test_moments_are_written_as_in_python(word, at):
    assert repr(built(f"at={word}")) == repr(ProgressiveUnfreeze(stages=["head", ("mid", "body")], at=at))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lr_factor=-1", r"- lr_factor must lie in \(0.0, inf\), got -1.0"),
        ("at=soon", "- at must be a whole number of steps or text such as '3 epochs' or '5%', got 'soon'"),
    ],
)
def test_our_message_is_among_those_of_the_parser(word, message):
    with pytest.raises(ValueError, match=message):
        built(word)
