"""The door to Lightning: the base of every technique, clocks, checkpoints, logging, evaluation.

Weights that are kept beside those of the module are here too, since several stages need them. Nothing here
knows any technique by name.
"""
