"""How many examples are tried, and which."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

__all__ = ["LONG", "examples"]

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


def examples(count: int) -> settings:
    """Return the settings for ``count`` fixed examples; a long run tries a hundred times as many, others."""
    return settings(
        max_examples=count * (100 if LONG else 1),
        derandomize=not LONG,
        database=None,
        deadline=None,  # other work may hold the machine up
        print_blob=LONG,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
