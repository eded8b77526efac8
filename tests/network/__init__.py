"""Initial weights, layers that are replaced, frozen, opened or driven, and statistics of BatchNorm.

Each as a function of modules first, then as a technique of a run.
"""
