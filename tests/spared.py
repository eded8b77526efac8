"""Work of Lightning that comes to nothing: a fifth of the time of these tests, and left out in them."""

from __future__ import annotations

from functools import cache
from typing import Any

from lightning.fabric.utilities import registry
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric

# For each Trainer, the files of all installed packages are read for plugins that they may bring.
registry.entry_points = cache(registry.entry_points)

# For each logged value, all that is held of it is copied to where it is.
copy_to = _ResultMetric.to


def to(self: _ResultMetric, device: Any, *args: Any, **options: Any) -> _ResultMetric:
    """Do as before, unless it is there."""
    here = self.is_tensor and self.value.device == device
    return self if here else copy_to(self, device, *args, **options)


_ResultMetric.to = to
