"""Several processes, under DDP and FSDP: each technique in each way to train, and what only goes wrong there.

Files without ``test_`` run in each of the processes, which ``launch.py`` starts.
"""
