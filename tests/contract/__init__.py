"""What every technique promises: laws, in the regimes of one process.

``cases.py`` has the entry of each technique, ``test_laws.py`` the laws, ``regimes.py`` the ways to train.
"""
