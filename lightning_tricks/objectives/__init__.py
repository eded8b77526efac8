"""What is minimised: losses, their targets and the data that they are taken over, and terms that join the loss.

A term that acts through its gradient does so once per optimizer step, before all other work on gradients.
"""
