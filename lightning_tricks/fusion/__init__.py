"""Several sets of trained weights become one: averages, interpolations, soups.

A method is a pure function of named tensors; it knows neither files nor a run.
"""
