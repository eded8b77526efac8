"""What arrives before the update: clipping and every other work on gradients.

All of it acts once per optimizer step, on unscaled gradients of the parameters that this optimizer steps.
"""
