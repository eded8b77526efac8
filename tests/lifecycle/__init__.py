"""The way into Lightning and out of it again: clocks, state, checkpoints, evaluation, data, errors.

What is written down is found again, and nothing is left behind.
"""
