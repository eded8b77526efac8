"""How many examples are tried, and which."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

__all__ = ["LONG", "SHORT", "examples"]

PROFILE = os.environ.get("HYPOTHESIS_PROFILE")
LONG, SHORT = PROFILE == "long", PROFILE == "short"


def examples(count: int) -> settings:
    """Return the settings for ``count`` fixed examples; a third if short, a hundred times as many if long."""
    return settings(
        max_examples=count * 100 if LONG else -(-count // 3) if SHORT else count,
        derandomize=not LONG,
        database=None,
        deadline=None,  # other work may hold the machine up
        print_blob=LONG,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
