"""What must hold of the package: a folder for each of its own, and folders for what goes across them.

Modules and loaders that many tests train are in ``toys.py``; other files without ``test_`` serve those beside
them.
"""
