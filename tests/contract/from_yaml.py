"""A technique as LightningCLI builds it from the settings of another."""

from __future__ import annotations

import dataclasses
from typing import Any

from lightning_tricks.core.schedule import Schedule
from lightning_tricks.lifecycle.technique import Technique
from tests.toys import Toy
from tests.yaml_trainer import yaml_trainer


def from_yaml(technique: Technique) -> Technique:
    """Return what LightningCLI makes of ``technique``'s settings."""
    spec = {"class_path": f"lightning_tricks.{type(technique).__name__}", "init_args": as_yaml(technique)}
    runner = yaml_trainer({"trainer": {"callbacks": [spec], "logger": False}}, Toy)
    return next(callback for callback in runner.callbacks if isinstance(callback, Technique))


def as_yaml(value: Any) -> Any:
    """Return settings as YAML holds them: policies by class path, schedules as text."""
    if isinstance(value, Technique):
        return {
            field.name: as_yaml(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
    if isinstance(value, Schedule):
        return repr(value)
    if dataclasses.is_dataclass(value):
        settings = {f.name: as_yaml(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"class_path": f"lightning_tricks.{type(value).__name__}", "init_args": settings}
    return [as_yaml(entry) for entry in value] if isinstance(value, list | tuple) else value
