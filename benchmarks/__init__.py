"""What the techniques cost and bring, measured; each file is a command, ``python -m benchmarks.NAME``.

``make bench`` runs those of cost, beside peers, and writes the figures into ``results`` and the documents.
"""
