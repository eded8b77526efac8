"""What techniques here and their counterparts elsewhere do, refuse, or get wrong without a word.

Each file with a ``QUESTION`` asks it of several, and judges the answers by a computation of its own.
"""
