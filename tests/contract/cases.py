"""One entry per technique: what the laws and the regimes run it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import lightning_tricks as lt
from lightning_tricks.lifecycle.technique import Technique


@dataclass(frozen=True)
class Case:
    """A technique, with a setting that changes a run of the toy module and one that does not.

    Attributes:
        neutral: Builds it so that a run equals the plain one to the bit.
        active: Builds it so that a run does not.
        exempt: Laws that do not apply, each with its reason.
        refused: Regimes that it refuses before the first batch, each with words of its error.
    """

    neutral: Callable[[], Technique]
    active: Callable[[], Technique]
    exempt: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


NOT_MANUAL = {"manual": "automatic_optimization must be True"}


CASES: dict[str, Case] = {
    "AdaptiveGradientClip": Case(
        neutral=lambda: lt.AdaptiveGradientClip(clip=1e9),
        active=lambda: lt.AdaptiveGradientClip(clip="0.1 * linear(to=0.1)", exclude="head.bias"),
    ),
    "EMAWeights": Case(
        neutral=lambda: lt.EMAWeights(decay=0.0),
        active=lambda: lt.EMAWeights(decay="0.9 * constant()", every=2, start=1, buffers="average"),
    ),
    "GradientCentralization": Case(
        neutral=lt.GradientCentralization,
        active=lt.GradientCentralization,
        exempt={"neutral": "no setting of it changes nothing: weights without rows are refused"},
    ),
    "GradientClip": Case(
        neutral=lambda: lt.GradientClip(max_norm=1e9),
        active=lambda: lt.GradientClip(max_norm="0.5 * linear(to=0.1)", max_value=0.1),
    ),
    "GradientNoise": Case(
        neutral=lambda: lt.GradientNoise(variance=0.0),
        active=lambda: lt.GradientNoise(variance="0.1 * linear(to=0.1)", params="body"),
        exempt={"same numbers": "each process draws its own noise for the parts of weights that it holds"},
    ),
    "GradientSurgery": Case(
        neutral=lambda: lt.GradientSurgery(method=lt.Sum()),
        active=lambda: lt.GradientSurgery(method=lt.PCGrad(), params="body", seed=3),
        refused=NOT_MANUAL,
    ),
    "PlateauDecay": Case(
        neutral=lambda: lt.PlateauDecay(monitor="val_loss", patience=1000),
        active=lambda: lt.PlateauDecay(monitor="val_loss", patience=1, min_delta=1e3, factor=0.5),
    ),
    "ProgressiveUnfreeze": Case(
        neutral=lambda: lt.ProgressiveUnfreeze(stages=["*"]),
        active=lambda: lt.ProgressiveUnfreeze(stages=["head", "body.1", "body.0"], at="30%"),
    ),
    "LearningRate": Case(
        neutral=lambda: lt.LearningRate(schedule=1.0),
        active=lambda: lt.LearningRate(
            schedule="warmup('20%') >> step(every='1 epoch', gamma=0.5)", params="head"
        ),
    ),
    "SharpnessAware": Case(
        neutral=lambda: lt.SharpnessAware(rho=0.0),
        active=lambda: lt.SharpnessAware(rho="0.5 * linear(to=0.1)", adaptive=True),
        refused=NOT_MANUAL,
    ),
    "WarmupCosine": Case(
        neutral=lambda: lt.WarmupCosine(warmup=0, final=1.0),
        active=lambda: lt.WarmupCosine(warmup="20%", final=0.1),
    ),
    "WeightFusion": Case(
        neutral=lambda: lt.WeightFusion(collect=lt.LastEpochs(1), keep="always", update_batchnorm=False),
        active=lambda: lt.WeightFusion(method=lt.Average(), keep="always", monitor="val_loss", mode="min"),
    ),
    "ExactResume": Case(
        neutral=lt.ExactResume,
        active=lt.ExactResume,
        exempt={"active": "it changes nothing in a run that is not resumed, as law neutral shows"},
    ),
}
