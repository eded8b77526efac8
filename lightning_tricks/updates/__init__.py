"""How a gradient becomes a step: learning rates, decay, parameter groups, optimizers around optimizers.

Schedules are counted in optimizer steps, never in batches, whatever is accumulated.
"""
