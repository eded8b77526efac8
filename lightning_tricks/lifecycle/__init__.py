"""The door to Lightning: the base of every technique, clocks, checkpoints, logging, evaluation.

What several stages need of a run is here, too, such as weights beside those of the module; nothing here
knows any technique by name.
"""
