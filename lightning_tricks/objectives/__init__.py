"""What is minimised: losses, their targets and the data that they are taken over.

What is done to gradients once they are there is done elsewhere.
"""
