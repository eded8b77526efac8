"""Does it help? Ablations and searches: what techniques bring and cost, and with which settings.

They are measured in trials, runs with seeds and data of their own, that several processes may share.
"""
