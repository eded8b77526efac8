"""Training techniques for PyTorch Lightning, as parts that can be trusted.

Add a technique to ``Trainer(callbacks=[...])``; each one's settings, effects and costs stand on its
card, the docstring of its class.
"""

from lightning_tricks.core.conflicts import ConflictError
from lightning_tricks.core.schedule import Schedule
from lightning_tricks.core.shapes import constant, cosine, exponential, linear, warmup
from lightning_tricks.gradients.clip import GradientClip
from lightning_tricks.updates.warmup_cosine import WarmupCosine

__all__ = [
    "ConflictError",
    "GradientClip",
    "Schedule",
    "WarmupCosine",
    "constant",
    "cosine",
    "exponential",
    "linear",
    "warmup",
]
__version__ = "0.1.0"
