"""The command line, called as a user would: what each command prints and writes.

And which mistakes it tells, in one line and with which exit code.
"""
