"""Which weights and layers there are, and which of them learn.

What is opened, frozen or replaced here is settled before a batch is computed, never within one.
"""
