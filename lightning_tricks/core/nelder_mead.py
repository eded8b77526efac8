"""Nelder and Mead's simplex search: a minimum of a function of few numbers, without derivatives.

Of n + 1 points the worst is moved through the mean of the others, by the factors 1 (reflected), 2 (expanded),
1/2 and -1/2 (contracted); if none helps, all points move half-way to the best.

Reference: Nelder and Mead, "A Simplex Method for Function Minimization", 1965, The Computer Journal 7(4),
with the acceptance rules of Lagarias et al. 1998, as in scipy and MATLAB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["nelder_mead"]

Point = tuple[float, ...]


def nelder_mead(
    function: Callable[[Point], float], simplex: Sequence[Point], *, evaluations: int, tolerance: float = 1e-4
) -> Point:
    """Return the point with the least value that the search sees; of equals the first.

    Args:
        function: May return infinity, but no NaN.
        simplex: One point more than a point has numbers.
        evaluations: How often ``function`` is called at most; at least once per point of ``simplex``.
        tolerance: It ends where points are this near to the best, in each number.

    Example:
        >>> nelder_mead(lambda x: (x[0] - 3.0) ** 2, [(0.0,), (1.0,)], evaluations=40, tolerance=1e-3)
        (3.0,)
    """
    left = evaluations

    def value(point: Point) -> float:
        nonlocal left
        left -= 1
        return function(point)

    known = sorted(((value(point), point) for point in simplex), key=_first)
    while left > 0 and _spread(known) > tolerance:
        mean = tuple(
            sum(numbers) / (len(known) - 1) for numbers in zip(*(p for _, p in known[:-1]), strict=True)
        )
        worst, last = known[-1]

        def moved(factor: float, mean: Point = mean, last: Point = last) -> tuple[float, Point]:
            point = tuple(m + factor * (m - w) for m, w in zip(mean, last, strict=True))
            return value(point), point

        reflected = moved(1.0)
        found = reflected
        if reflected[0] < known[0][0] and left > 0:
            found = min(reflected, moved(2.0), key=_first)
        elif reflected[0] >= known[-2][0] and left > 0:
            found = moved(0.5) if reflected[0] < worst else moved(-0.5)
            if found[0] > reflected[0] or found[0] >= worst:
                known = _shrunk(known, value, left)
                continue
        known = sorted([*known[:-1], found], key=_first)
    return known[0][1]


def _first(known: tuple[float, Point]) -> float:
    return known[0]


def _spread(known: list[tuple[float, Point]]) -> float:
    best = known[0][1]
    return max((abs(a - b) for _, point in known for a, b in zip(point, best, strict=True)), default=0.0)


def _shrunk(
    known: list[tuple[float, Point]], value: Callable[[Point], float], left: int
) -> list[tuple[float, Point]]:
    """Return the points half-way to the best, as many of them as there are evaluations ``left``."""
    best = known[0][1]
    found = list(known)
    for index in range(1, min(len(known), left + 1)):
        point = tuple(b + 0.5 * (p - b) for p, b in zip(known[index][1], best, strict=True))
        found[index] = value(point), point
    return sorted(found, key=_first)
