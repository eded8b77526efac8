"""Ablations and searches: what they try, find, share among processes and refuse.

``small.py`` and ``bowl.py`` are trainings that take no time.
"""
