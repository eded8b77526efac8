"""A second set of weights, kept beside the first: averages along the training run.

An average is updated after real optimizer steps only, shown to every evaluation, and saved beside the live
weights.
"""
