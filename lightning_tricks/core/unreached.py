"""What of a schedule lies past the end of the run, where it changes nothing."""

from __future__ import annotations

import math

from lightning_tricks.core.schedule import Course

__all__ = ["unreached"]


def unreached(course: Course) -> list[str]:
    """Return a line for each part, and each milestone of a part, that the run ends before.

    A part that only holds the last value from the end on is none. Nothing is known of a run without a known
    length.

    Example:
        >>> from lightning_tricks import cosine, warmup
        >>> from lightning_tricks.core.duration import Horizon
        >>> unreached((warmup(2000) >> cosine()).resolve(Horizon(total=7)))
        ['cosine(to=0.0) begins at step 2000, but the run has 7 steps: it has no effect']
    """
    last = course.legs[-1]
    total = last.span.horizon.total
    if total is None:
        return []
    lines = []
    told = f"but the run has {total} steps: it has no effect"
    before = None
    for leg in course.legs:
        begin = leg.span.begin
        held = leg.part.still and before is not None and math.isclose(leg.last, before)
        if begin > total or (begin == total and before is not None and not held):
            lines.append(f"{leg.part!r} begins at step {begin}, {told}")
        else:
            lines += [
                f"{name} of {leg.part!r} is step {at}, {told}"
                for at, name in leg.part.moments(leg.span)
                if at >= total
            ]
        before = leg.last
    return lines
