"""What is minimised: losses, their targets, the data that they are taken over, and terms beside them.

A term that acts through its gradient does so once per optimizer step, before all other work on gradients.
"""
