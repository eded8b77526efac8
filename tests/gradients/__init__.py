"""Work on gradients: clipping, centralization, noise, surgery.

Each as a function of tensors first, then as a technique of a run.
"""
