"""Losses, their targets and terms beside them, batches that are changed, and adversarial training.

Each as a function of tensors first, then as a technique or a mixin of a run.
"""
