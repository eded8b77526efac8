"""What is read of a run and said of it: health, diagnoses, the report.

Runs are made ill on purpose, and must be called so; healthy ones must not.
"""
