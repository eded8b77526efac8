"""One entry per technique: what the laws and the regimes run it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lightning.pytorch import Callback

import lightning_tricks as lt
from tests.contract.adapting import (
    as_it_is,
    with_batchnorm,
    with_cross_entropy,
    with_dropout,
    with_layer_norm,
    with_residual_block,
    with_signals,
    without_own_decay,
)
from tests.contract.gan_toy import Plays, with_a_pair
from tests.contract.mixing import Learns, as_by_hand, balanced, in_layers, optimized
from tests.contract.old_task import OldTask
from tests.toys import Toy


@dataclass(frozen=True)
class Case:
    """A technique or a mixin, with a setting that changes a run of the toy module and one that does not.

    Attributes:
        neutral: Builds it so that a run equals the plain one to the bit.
        active: Builds it so that a run does not.
        exempt: Laws that do not apply, each with its reason.
        adapt: Makes of a toy module one that the technique can train.
        refused: Regimes that it refuses before the first batch, each with words of its error.
    """

    neutral: Callable[[], Callback]
    active: Callable[[], Callback]
    exempt: Mapping[str, str] = field(default_factory=dict)
    adapt: Callable[[Toy], Toy] = as_it_is
    refused: Mapping[str, str] = field(default_factory=dict)


NO_NEUTRAL_WEIGHTS = {"neutral": "no setting of it leaves all weights as they are"}
MIXES_ITS_OWN = {"same data": "each process mixes the samples of its own share"}
PART_OF_A_MODULE = dict.fromkeys(
    ("safe", "rebuild", "quiet", "copy", "documented"), "a mixin is part of a module"
)
NOT_MANUAL = {"manual": "automatic_optimization must be True"}


CASES: dict[str, Case] = {
    "WeightInit": Case(
        neutral=lambda: lt.WeightInit(seed=1),
        active=lambda: lt.WeightInit(
            scheme="orthogonal", nonlinearity="tanh", params="body", bias=0.1, seed=2
        ),
        exempt=NO_NEUTRAL_WEIGHTS,
    ),
    "LSUV": Case(
        neutral=lambda: lt.LSUV(seed=1),
        active=lambda: lt.LSUV(tolerance=0.05, batches=2, params=("body", "head.weight"), seed=2),
        exempt=NO_NEUTRAL_WEIGHTS,
    ),
    "ZeroInitResidual": Case(
        neutral=lambda: lt.ZeroInitResidual(),
        active=lambda: lt.ZeroInitResidual(params=("body", "head"), last="head"),
        adapt=with_residual_block,
        exempt=NO_NEUTRAL_WEIGHTS,
    ),
    "Freeze": Case(
        neutral=lambda: lt.Freeze(params="body", at="40%"),
        active=lambda: lt.Freeze(params="body[:1]", at="40%", dropout="off"),
        exempt={"neutral": "no setting of it changes nothing: one that never freezes anything says so"},
    ),
    "ProgressiveUnfreeze": Case(
        neutral=lambda: lt.ProgressiveUnfreeze(stages=["*"]),
        active=lambda: lt.ProgressiveUnfreeze(
            stages=["head", "body.1", "body.0"], at="30%", warmup="15%", dropout="off"
        ),
    ),
    "ReplaceNorm": Case(
        neutral=lambda: lt.ReplaceNorm(to="sync_batch"),
        active=lambda: lt.ReplaceNorm(to="rms", params="body"),
        exempt={"neutral": "a layer that computes the same is no other norm"},
        adapt=with_layer_norm,
    ),
    "SpectralNorm": Case(
        neutral=lt.SpectralNorm,
        active=lambda: lt.SpectralNorm(params="body", n_power_iterations=2),
        exempt={
            "neutral": "no setting of it leaves weights their norm",
            "copy": "torch pickles no module with parametrizations",
        },
    ),
    "DropoutSchedule": Case(
        neutral=lambda: lt.DropoutSchedule(schedule=0.2),
        active=lambda: lt.DropoutSchedule(schedule="constant(0.5, over='1 epoch') >> linear(to=0.0)"),
        adapt=with_dropout,
    ),
    "MonteCarloDropout": Case(
        neutral=lt.MonteCarloDropout,
        active=lambda: lt.MonteCarloDropout(passes=2, params="body", seed=3),
        exempt={"active": "it acts in predict alone"},
        adapt=with_dropout,
    ),
    "PreciseBatchNorm": Case(
        neutral=lt.PreciseBatchNorm,
        active=lambda: lt.PreciseBatchNorm(batches=3),
        exempt={"neutral": "statistics that are estimated anew are others"},
        adapt=with_batchnorm,
    ),
    "Mixup": Case(
        neutral=lambda: lt.Mixup(classes=3, probability=0.0),
        active=lambda: lt.Mixup(classes=3, alpha=0.4, probability="linear(to=0.5)", seed=2),
        exempt=MIXES_ITS_OWN,
    ),
    "CutMix": Case(
        neutral=lambda: lt.CutMix(classes=3, probability=0.0),
        active=lambda: lt.CutMix(classes=3, probability=0.8, seed=2),
        exempt=MIXES_ITS_OWN,
    ),
    "ProgressiveResizing": Case(
        neutral=lambda: lt.ProgressiveResizing(scale=1.0, multiple=1),
        active=lambda: lt.ProgressiveResizing(scale="linear(to=1.0, start=0.25)", multiple=1),
        adapt=with_signals,
    ),
    "LabelSmoothing": Case(
        neutral=lambda: lt.LabelSmoothing(smoothing=0.0),
        active=lambda: lt.LabelSmoothing(smoothing="0.4 * linear(to=0.1)", losses="criterion"),
        adapt=with_cross_entropy,
    ),
    "BalancedLosses": Case(
        neutral=lambda: balanced(lt.FixedWeights({"fit": 1.0, "size": 0.0})),
        active=lambda: balanced(lt.MagnitudeBalance(decay=0.5)),
        exempt=PART_OF_A_MODULE,
    ),
    "Distillation": Case(
        neutral=lambda: Learns(alpha=0.0),
        active=lambda: Learns({"body": "0"}, alpha=0.7, temperature="8 * linear(to=0.5)"),
        exempt=PART_OF_A_MODULE,
    ),
    "GradientClip": Case(
        neutral=lambda: lt.GradientClip(max_norm=1e9),
        active=lambda: lt.GradientClip(max_norm="0.5 * linear(to=0.1)", max_value=0.1),
    ),
    "AdaptiveGradientClip": Case(
        neutral=lambda: lt.AdaptiveGradientClip(clip=1e9),
        active=lambda: lt.AdaptiveGradientClip(clip="0.1 * linear(to=0.1)", exclude="head.bias"),
    ),
    "GradientCentralization": Case(
        neutral=lt.GradientCentralization,
        active=lt.GradientCentralization,
        exempt={"neutral": "no setting of it changes nothing: weights without rows are refused"},
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
    "OptimizerMixin": Case(
        neutral=lambda: optimized(as_by_hand),
        active=lambda: optimized(in_layers),
        exempt=PART_OF_A_MODULE,
        adapt=without_own_decay,
    ),
    "WarmupCosine": Case(
        neutral=lambda: lt.WarmupCosine(warmup=0, final=1.0),
        active=lambda: lt.WarmupCosine(warmup="20%", final=0.1),
    ),
    "LearningRate": Case(
        neutral=lambda: lt.LearningRate(schedule=1.0),
        active=lambda: lt.LearningRate(
            schedule="warmup('20%') >> step(every='1 epoch', gamma=0.5)", params="head"
        ),
    ),
    "PlateauDecay": Case(
        neutral=lambda: lt.PlateauDecay(monitor="val_loss", patience=1000),
        active=lambda: lt.PlateauDecay(monitor="val_loss", patience=1, min_delta=1e3, factor=0.5),
    ),
    "WeightDecay": Case(
        neutral=lambda: lt.WeightDecay(strength=0.0),
        active=lambda: lt.WeightDecay(strength="0.1 * linear(to=0.1)"),
        adapt=without_own_decay,
    ),
    "NormPenalty": Case(
        neutral=lambda: lt.NormPenalty(l1=0.0, proximal=True),
        active=lambda: lt.NormPenalty(l1="1e-2 * linear(to=0.1)", proximal=True),
        adapt=without_own_decay,
    ),
    "Lookahead": Case(
        neutral=lambda: lt.Lookahead(k=2, alpha=1.0),
        active=lambda: lt.Lookahead(k=2, alpha="0.8 * linear(to=0.5)"),
    ),
    "ScheduleFree": Case(
        neutral=lambda: lt.ScheduleFree(update_batchnorm=False),
        active=lt.ScheduleFree,
        exempt={
            "neutral": "its optimizers do not step without it",
            "active": "so there is no run to compare with",
        },
    ),
    "SharpnessAware": Case(
        neutral=lambda: lt.SharpnessAware(rho=0.0),
        active=lambda: lt.SharpnessAware(rho="0.5 * linear(to=0.1)", adaptive=True),
        refused=NOT_MANUAL,
    ),
    "EMAWeights": Case(
        neutral=lambda: lt.EMAWeights(decay=0.0),
        active=lambda: lt.EMAWeights(decay=lt.HalfLife("40 samples"), every=2, start=1, buffers="average"),
    ),
    "PostHocEMA": Case(
        neutral=lambda: lt.PostHocEMA(),
        active=lambda: lt.PostHocEMA(
            gammas=(3.0, 0.5), every=2, snapshot_every="40%", params="head", file_dtype="float16"
        ),
        exempt={"active": "it changes nothing, as law neutral shows"},
    ),
    "SWAWeights": Case(
        neutral=lambda: lt.SWAWeights(start="100%", every=1, update_batchnorm=False),
        active=lambda: lt.SWAWeights(start="20%", every=2, lr=0.02, anneal=3, batches=3),
        adapt=with_batchnorm,
    ),
    "LAWA": Case(
        neutral=lambda: lt.LAWA(k=1, every=1, store="memory", update_batchnorm=False),
        active=lambda: lt.LAWA(k=3, every=2, batches=3),
        exempt={"copy": "its snapshots are files, which the original deletes when it goes on"},
        adapt=with_batchnorm,
    ),
    "WeightFusion": Case(
        neutral=lambda: lt.WeightFusion(collect=lt.LastEpochs(1), keep="always", update_batchnorm=False),
        active=lambda: lt.WeightFusion(
            method=lt.Average(), keep="always", monitor="val_loss", mode="min", every="1 epoch"
        ),
    ),
    "ElasticWeightConsolidation": Case(
        neutral=lambda: lt.ElasticWeightConsolidation(strength=0.0, data=OldTask()),
        active=lambda: lt.ElasticWeightConsolidation(
            strength="10 * linear(to=0.5)", data=OldTask(), samples=12, decay=0.9, params=("body", "head")
        ),
        refused=NOT_MANUAL,
    ),
    "GANMixin": Case(
        neutral=Plays,
        active=Plays,
        exempt={
            "neutral": "no setting of it leaves a module its own training",
            **PART_OF_A_MODULE,
            "same data": "each process draws its own latent points and noise",
        },
        adapt=with_a_pair,
        refused=dict.fromkeys(
            (
                "accumulation",
                "bf16-mixed, accumulation",
                "bf16-true, accumulation",
                "16-mixed, accumulation",
            ),
            "accumulate_grad_batches must be 1 with GANMixin",
        ),
    ),
    "GradientHealth": Case(
        neutral=lambda: lt.GradientHealth(every=1),
        active=lambda: lt.GradientHealth(every=2, per_layer=False),
        exempt={"active": "it changes nothing, as law neutral shows"},
    ),
    "Diagnosis": Case(
        neutral=lambda: lt.Diagnosis(every=1),
        active=lambda: lt.Diagnosis(every=2),
        exempt={"active": "it changes nothing, as law neutral shows"},
    ),
    "RunReport": Case(
        neutral=lt.RunReport,
        active=lt.RunReport,
        exempt={"active": "it changes nothing, as law neutral shows"},
    ),
    "ExactResume": Case(
        neutral=lt.ExactResume,
        active=lt.ExactResume,
        exempt={"active": "it changes nothing in a run that is not resumed, as law neutral shows"},
    ),
}
MIXINS = [name for name, case in CASES.items() if PART_OF_A_MODULE.items() <= case.exempt.items()]
