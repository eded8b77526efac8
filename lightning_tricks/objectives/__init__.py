"""What is minimised: terms that join the loss, and what a loss is made of.

A term that acts through its gradient does so once per optimizer step, before all other work on gradients.
"""
