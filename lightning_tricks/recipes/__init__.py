"""Ready lists of techniques for the usual cases, in which each setting names its source.

Beside them is what examples, benchmarks and tests train: small models, and data that need no download.
"""

from lightning_tricks.recipes.ready import finetune, from_scratch_cnn, gan, transformer
from lightning_tricks.recipes.recipe import Recipe

__all__ = ["Recipe", "finetune", "from_scratch_cnn", "gan", "transformer"]
