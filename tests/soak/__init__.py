"""Runs that are broken off anywhere, by everything that may break a run off, and resumed.

``make soak`` tries many points; the suite a few.
"""
