"""Averages of weights: what they are, beside formulas, papers and torch's own.

Where they go is here, too: into evaluations, checkpoints and the module, and back out of it.
"""
