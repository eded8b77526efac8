"""A technique as LightningCLI builds it from the settings of another."""

from __future__ import annotations

import yaml

from lightning_tricks import to_yaml
from lightning_tricks.lifecycle.technique import Technique
from tests.contract.old_task import OldTask
from tests.toys import Toy
from tests.yaml_trainer import yaml_trainer


def from_yaml(technique: Technique) -> Technique:
    """Return what LightningCLI makes of ``technique``'s settings."""
    config = yaml.safe_load(to_yaml(technique))
    config["trainer"]["logger"] = False
    runner = yaml_trainer(config, Toy, OldTask)  # LightningCLI makes no data for a callback without any
    return next(callback for callback in runner.callbacks if isinstance(callback, Technique))
