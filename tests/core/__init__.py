"""The arithmetic, schedules, durations and choices that need torch only.

Beside torch's own schedulers, scikit-learn, and cases worked out by hand.
"""
