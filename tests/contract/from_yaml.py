"""A technique as LightningCLI builds it from the settings of another."""

from __future__ import annotations

import dataclasses

from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.recipes.recipe import as_plain
from tests.toys import Toy
from tests.yaml_trainer import yaml_trainer


def from_yaml(technique: Technique) -> Technique:
    """Return what LightningCLI makes of ``technique``'s settings."""
    settings = {f.name: as_plain(getattr(technique, f.name)) for f in dataclasses.fields(technique) if f.init}
    spec = {"class_path": f"lightning_tricks.{type(technique).__name__}", "init_args": settings}
    runner = yaml_trainer({"trainer": {"callbacks": [spec], "logger": False}}, Toy)
    return next(callback for callback in runner.callbacks if isinstance(callback, Technique))
