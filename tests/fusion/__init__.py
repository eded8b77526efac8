"""Methods of fusing, beside papers, peers and twins that are slow and plain; in memory, over files, in runs.

``mergekit_numbers.json`` is what mergekit made of small tensors, for those who do not have it.
"""
