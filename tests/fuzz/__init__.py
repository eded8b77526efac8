"""What comes of anything: always a named error or the right result, and never anything else.

By default a fixed, quick selection of examples runs, with ``--short`` a third of it.
``HYPOTHESIS_PROFILE=long python -m pytest tests/fuzz`` tries a hundred times as many, other ones each time,
and prints how to repeat what fails.
"""
