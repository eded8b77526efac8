"""LightningCLI knows the type of every setting, so that words of a command line become values of it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import is_dataclass
from typing import Any

import jsonargparse
import pytest
import yaml

import lightning_tricks

BUILT = [
    name
    for name in lightning_tricks.__all__
    if is_dataclass(kind := getattr(lightning_tricks, name)) and ".study." not in kind.__module__
]


def types_of(kind: type) -> dict[str, str]:
    """Return how the parser writes the types of the settings of ``kind``."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "it")
    found = {action.dest: str(getattr(action, "_typehint", "")) for action in parser._actions}
    return {name: written for name, written in found.items() if name.startswith("it.")}


@pytest.mark.parametrize("name", BUILT)
def test_types_of_settings_are_known(name: str) -> None:
    # One name that cannot be looked up where a subclass is defined, in an annotation of any of its bases,
    # and the parser takes every setting of the class for anything.
    types = types_of(getattr(lightning_tricks, name))
    assert {setting: written for setting, written in types.items() if "Unvalidated" in written} == {}


def test_the_list_of_classes_is_no_empty_one() -> None:
    assert {"ProgressiveUnfreeze", "GradientClip", "Plateau"} <= set(BUILT)
    assert types_of(lightning_tricks.Plateau)["it.patience"] == "<class 'int'>"


@pytest.mark.parametrize(
    "config", [{"stages": ["head", ["body.0", "body.1*"]]}, {"stages": ["head", "body*"]}]
)
def test_settings_are_written_down_as_they_were_given(config: dict[str, Any]) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(lightning_tricks.ProgressiveUnfreeze, "it")
    written = parser.dump(parser.parse_object({"it": deepcopy(config)}))
    assert yaml.safe_load(written)["it"]["stages"] == config["stages"]
    assert parser.dump(parser.parse_string(written)) == written
