"""The Trainer that LightningCLI makes of a configuration."""

from __future__ import annotations

import sys
import warnings
from typing import Any
from unittest.mock import patch

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI

__all__ = ["yaml_trainer"]


def yaml_trainer(config: dict[str, Any], *classes: type) -> Trainer:
    """Return the Trainer of ``config``, as YAML would hold it, for the classes of module and data."""
    with warnings.catch_warnings(), patch.object(sys, "argv", ["train"]):
        # Lightning's own: what it calls of jsonargparse is deprecated, and no seed is given here.
        warnings.simplefilter("ignore")
        return LightningCLI(*classes, run=False, save_config_callback=None, args=config).trainer
