"""What makes a step of a gradient: rates, decay, groups, optimizers around optimizers.

Beside torch's own schedulers and optimizers, to the bit where both do the same.
"""
