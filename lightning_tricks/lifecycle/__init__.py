"""The door to Lightning: the base of every technique, clocks, checkpoints, logging, evaluation, and
what is kept of weights beside the module.

Nothing here knows any technique by name.
"""
