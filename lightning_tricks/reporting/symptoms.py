"""What is wrong with a run, told from its history: each illness a function that gives evidence, or nothing.

Every limit stands here as a constant with its reason. They are wide: what is said of a healthy run makes all
else that is said worthless, so a doubtful case is passed over in silence.

References: Smith, "A Disciplined Approach to Neural Network Hyper-Parameters: Part 1", 2018,
https://arxiv.org/abs/1803.09820, section 3 (what the loss tells of rate and over-fitting); Karpathy,
"makemore: Activations & Gradients, BatchNorm", 2022, https://github.com/karpathy/nn-zero-to-hero (updates of
a healthy layer are about 1e-3 of its weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median

from torch import Tensor

from lightning_tricks.reporting.run_history import History, Validation, Window, trend

__all__ = [
    "LAYERS",
    "SYMPTOMS",
    "VANISHING",
    "clips_always",
    "clips_never",
    "decayed_early",
    "diverges",
    "illness",
    "largest_reach",
    "oscillates",
    "overfits",
    "plateau",
    "silence",
    "too_slow",
]

_FEWEST = 5  # windows before anything is said of a trend
_STEPS = 100  # steps, likewise
_SURE = 3.0  # standard errors

_LARGE = 0.03  # share of its weights that a step changes: 30 times what is healthy
_SMALL = 3e-5  # and a thirtieth of it
_REACH = 0.2  # share of a threshold that the largest norm reaches: from there on it guards against jumps
_ALWAYS = 0.95  # share of steps that are clipped
VANISHING = 1e-6
"""Share of the root mean square of the largest layer's gradients under which a layer has as good as none."""

LAYERS = {
    "no gradient": ("none arrives in ", "let the loss depend on it, or freeze it"),
    "dead layer": (
        "all gradients are zero in ",
        "lower the rate, initialise it anew, or let units leak (LeakyReLU)",
    ),
    "vanishing gradient": (
        f"of those in the largest layer, less than {VANISHING:g} arrives in ",
        "no rate mends that: take other units than sigmoids, normalise, or let blocks be residual",
    ),
}
"""What two looks in a row may see in layers, with how that is said and what to do."""


def diverges(run: History) -> str | None:
    """Return the evidence that the loss shot up at the start, or lost half of what it had gained, or all."""
    windows = run.windows
    if windows and not math.isfinite(windows[-1].loss):
        return f"the loss is {windows[-1].loss} at step {windows[-1].step}"
    worst = max(windows[:3], key=lambda window: window.loss, default=None)
    if worst is not None and run.first is not None and worst.loss > 2 * run.first > 0.0:
        return (
            f"the loss rose from {run.first:.4g} at the first step to {worst.loss:.4g} by step {worst.step}"
        )
    if len(windows) < _FEWEST:
        return None
    best = min(windows[:-3], key=lambda window: window.loss)
    last, first = windows[-3:], windows[0].loss
    jumps = [abs(after.loss - before.loss) for before, after in pairwise(windows[:-3])]
    noise = max(best.spread, median(window.spread for window in windows), median(jumps) if jumps else 0.0)
    limit = best.loss + max(0.5 * (first - best.loss), 3 * noise)
    if all(window.loss > limit for window in last):
        return (
            f"the loss rose from {best.loss:.4g} at step {best.step} to {last[-1].loss:.4g}, and stays there"
        )
    return None


def oscillates(run: History) -> str | None:
    """Return the evidence that steps are so large that the loss jumps about instead of falling."""
    last = run.windows[-_FEWEST:]
    if len(last) < _FEWEST or last[-1].step < _STEPS:
        return None
    update = median(window.update for window in last)
    if update < _LARGE or _falls(last):
        return None
    now, spread = fmean(window.loss for window in last), fmean(window.spread for window in last)
    if spread < 0.25 * abs(run.windows[0].loss - now) or spread < 0.1 * abs(now):
        return None  # next to what it has learnt, or to what is left, it stands still
    return (
        f"the loss jumps about {now:.4g} by {spread:.2g} and does not fall, while a step changes weights by "
        f"{update:.1%} (about 0.1% is usual)"
    )


def too_slow(run: History) -> str | None:
    """Return the evidence that nearly nothing is learnt although gradients arrive, since steps are tiny."""
    windows = run.windows
    if len(windows) < _FEWEST or windows[-1].step < max(_STEPS, 0.1 * (run.total or 0)):
        return None
    if any(after.rate > before.rate for before, after in pairwise(windows[-3:])):
        return None  # it is still warming up
    first, now, update = windows[0], windows[-1], median(window.update for window in windows)
    fallen = (first.loss - now.loss) / max(abs(first.loss), 1e-12)
    if update >= _SMALL or fallen > 0.02 or not now.gradient > 0.0:
        return None
    return (
        f"the loss fell by {max(fallen, 0.0):.1%} in {now.step} steps, each of which changes weights by "
        f"{update:.1g} of their size (about 0.001 is usual), though gradients arrive (norm "
        f"{now.gradient:.2g})"
    )


def decayed_early(run: History) -> str | None:
    """Return the evidence that the rate was all but gone when the loss still fell, long before the end."""
    gone = next((i for i, window in enumerate(run.windows) if i and window.rate < 0.02), None)
    if run.total is None or gone is None or gone < _FEWEST:
        return None
    peak = max(range(gone), key=lambda i: run.windows[i].rate)
    step, before = run.windows[gone].step, [window for window in run.windows[:gone] if window.rate >= 0.1]
    if step > 0.6 * run.total or peak >= gone or len(before) < _FEWEST:
        return None
    last = before[-max(_FEWEST, len(before) // 2) :]
    slope, sure = trend([window.loss for window in last])
    ahead = slope * len(last) / max(abs(last[-1].loss), 1e-12)
    if sure > -_SURE or ahead > -0.05:
        return None
    return (
        f"the rate was below 2% of its peak at step {step} of {run.total}, while the loss had fallen by "
        f"{-ahead:.0%} in the {last[-1].step - last[0].step} steps before"
    )


def overfits(run: History) -> str | None:
    """Return the evidence that validation gets worse while training goes on getting better."""
    seen = run.validations
    if len(seen) < 4:
        return None
    best = min(range(len(seen) - 3), key=lambda i: seen[i].value)
    since = seen[best + 1 :]
    # The best is the luckiest of many, and at a constant rate they jump about for the rest of the run.
    wobble = _wobble(seen[max(0, best - 10) :])
    floor = seen[best].value + max(0.02 * abs(seen[best].value), 4 * wobble)
    worse = all(each.value > floor for each in since[-3:])
    if not worse or not since[-1].training < seen[best].training:
        return None
    return (
        f"since epoch {seen[best].epoch} validation rose from {seen[best].value:.4g} to "
        f"{since[-1].value:.4g}, while the training loss fell from {seen[best].training:.4g} to "
        f"{since[-1].training:.4g}"
    )


def plateau(run: History) -> str | None:
    """Return the evidence that the loss stands still at a rate that has hardly been lowered."""
    windows = run.windows
    half = windows[len(windows) // 2 :]
    if len(half) < 2 * _FEWEST or half[0].rate < 0.5 or half[-1].rate < 0.5:
        return None
    early, late = fmean(_losses(half[: len(half) // 2])), fmean(_losses(half[len(half) // 2 :]))
    gained, level = windows[0].loss - late, max(abs(late), 1e-12)
    if early - late > 0.01 * level or _falls(half) or gained < 0.02 * abs(windows[0].loss):
        return None  # the last is no plateau but a start that never came
    if late < 0.05 * windows[0].loss or (run.total is not None and half[-1].step > 0.8 * run.total):
        return None  # nothing is left to learn, or no time
    if (
        len(seen := _since(run, half[0].step)) > 1
        and min(each.value for each in seen[1:]) < 0.99 * seen[0].value
    ):
        return None
    return f"the loss stands at {late:.4g} since step {half[0].step}"


def clips_always(outcome: Mapping[str, object]) -> str | None:
    """Return the evidence that a threshold cuts nearly every step, from what a technique did."""
    steps, clipped = _counts(outcome)
    if steps < _STEPS or clipped <= _ALWAYS * steps:
        return None
    return f"{clipped} of {steps} steps were clipped: the threshold sets the length of each step"


def clips_never(outcome: Mapping[str, object], reach: float) -> str | None:
    """Return the evidence that a threshold is out of reach, likewise, and from :func:`largest_reach`."""
    steps, clipped = _counts(outcome)
    if steps < _STEPS or clipped or not 0.0 < reach < _REACH:
        return None
    return f"none of {steps} steps was clipped, and the largest norm seen was {reach:.1%} of the threshold"


def largest_reach(metrics: Mapping[str, float | Tensor], prefix: str) -> float:
    """Return the largest norm as a share of its threshold, of those that were logged under ``prefix``.

    Example:
        >>> largest_reach({"clip/norm/0": 2.0, "clip/threshold/0": 8.0, "loss": 1.0}, "clip")
        0.25
    """
    begins = f"{prefix}/norm"
    norms = {name.removeprefix(begins): name for name in metrics if name.startswith(begins)}
    pairs = [
        (metrics[name], metrics.get(f"{prefix}/threshold{end}", math.nan)) for end, name in norms.items()
    ]
    shares = [float(norm) / float(limit) for norm, limit in pairs]
    return max((share for share in shares if share >= 0.0), default=0.0)


SYMPTOMS: dict[str, tuple[Callable[[History], str | None], str]] = {
    "rate too high (divergence)": (
        diverges,
        "lower the learning rate 3 to 10 times, warm up, or clip gradients",
    ),
    "rate too high (oscillation)": (oscillates, "lower the learning rate 3 to 10 times"),
    "rate too low": (too_slow, "raise the learning rate 10 times or more, and watch the loss"),
    "decayed too early": (decayed_early, "let the schedule end where the run does"),
    "over-fitting": (overfits, "keep the weights of the best epoch, stop there, or regularise"),
    "plateau": (plateau, "lower the rate now (PlateauDecay), or end the run"),
}
"""By name: what finds it, and what to do. In an order in which a finding explains those that follow."""


def illness(run: History, *, vanishing: bool) -> tuple[str, str, str] | None:
    """Return the first illness that the history shows, which may be the reason of those that follow.

    Args:
        run: The history.
        vanishing: Whether gradients vanish. Then neither a rate nor what was learnt can be judged, and only a
            loss that diverges is told.

    Returns:
        Its name, the evidence, and what to do.
    """
    for kind, (symptom, proposal) in SYMPTOMS.items():
        if (evidence := symptom(run)) and (symptom is diverges or not vanishing):
            return kind, evidence, proposal
    return None


def _falls(windows: Sequence[Window]) -> bool:
    return trend(_losses(windows))[1] < -_SURE


def _losses(windows: Sequence[Window]) -> list[float]:
    return [window.loss for window in windows]


def _wobble(seen: Sequence[Validation]) -> float:
    """Return by how much a validation differs from the one before, as a rule."""
    return median(abs(after.value - before.value) for before, after in pairwise(seen))


def _since(run: History, step: int) -> list[Validation]:
    return [each for each in run.validations if each.step >= step]


def _counts(outcome: Mapping[str, object]) -> tuple[int, int]:
    steps, clipped = outcome.get("steps"), outcome.get("clipped")
    return (steps, clipped) if isinstance(steps, int) and isinstance(clipped, int) else (0, 0)


def silence(run: History) -> str:
    """Return what it means that nothing was found: ``"none"``, or that too little was seen to tell."""
    return "none" if len(run.windows) >= _FEWEST else f"none: fewer than {_FEWEST} looks tell little"
