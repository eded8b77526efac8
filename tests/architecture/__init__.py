"""The rules of the source itself: who imports whom, what files are called and hold, how techniques look.

Each rule reads the files as text, and has a test that shows that it can fail.
"""
