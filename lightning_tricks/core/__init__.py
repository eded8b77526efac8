"""What needs torch only: which tensors, when and how much, and the arithmetic on lists of tensors.

Nothing here knows Lightning or any technique by name.
"""
