"""Several sets of trained weights become one: averages, interpolations, soups.

A method is a pure function of named tensors; what gives it those of files or of a run is apart.
"""
