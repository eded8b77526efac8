"""The Trainer and the module that LightningCLI makes of a configuration or of a command line."""

from __future__ import annotations

import sys
import warnings
from typing import Any
from unittest.mock import patch

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI

__all__ = ["yaml_module", "yaml_trainer"]


def yaml_trainer(config: dict[str, Any] | list[str], *classes: type) -> Trainer:
    """Return the Trainer of ``config``, for the classes of module and data.

    Args:
        config: As YAML would hold it, or the words of a command line.
        classes: Of the module, and of the data if there are any.
    """
    return _cli(config, *classes).trainer


def yaml_module(config: dict[str, Any] | list[str], *classes: type) -> LightningModule:
    """Return the module likewise."""
    return _cli(config, *classes).model


def _cli(config: dict[str, Any] | list[str], *classes: type) -> LightningCLI:
    with warnings.catch_warnings(), patch.object(sys, "argv", ["train"]):
        # Lightning's own: what it calls of jsonargparse is deprecated, and no seed is given here.
        warnings.simplefilter("ignore")
        return LightningCLI(*classes, run=False, save_config_callback=None, args=config)
