"""The door to Lightning: the base of every technique, clocks, checkpoints, logging, evaluation.

Nothing here knows any technique by name.
"""
