"""Ready lists of techniques; what examples, benchmarks and tests train: small models, data at hand."""

from lightning_tricks.recipes.ready import finetune, from_scratch_cnn, gan, transformer
from lightning_tricks.recipes.recipe import Recipe

__all__ = ["Recipe", "finetune", "from_scratch_cnn", "gan", "transformer"]
