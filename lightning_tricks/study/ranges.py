"""What is worth trying of each technique: the settings that matter, and between which values.

A search without a space of the user's own takes these. Each technique is tried with and without; with an
empty mapping, that is all. Where no paper is named, the range is a decade or so around what is usual.
"""

from __future__ import annotations

from typing import Any

__all__ = ["NOT_SEARCHED", "OBSERVERS", "RANGES"]

RANGES: dict[str, dict[str, Any]] = {
    # For the activations of the module one of them keeps the variance; which, few people look up.
    "WeightInit": {"scheme": ["kaiming_normal", "kaiming_uniform", "xavier_uniform", "orthogonal"]},
    # Its tolerance is how well a goal is met, and the authors' 0.1 is good enough.
    "LSUV": {},
    "ZeroInitResidual": {},
    # What to freeze, and until when, follows from the model; whether it helps can be asked.
    "Freeze": {},
    # Howard and Ruder, section 3.2: 1 / 2.6 per stage; 1 is one rate for all.
    "ProgressiveUnfreeze": {"lr_factor": {"low": 0.2, "high": 1.0}},
    "ReplaceNorm": {},
    # More power iterations are more exact, and Miyato et al. found one enough.
    "SpectralNorm": {},
    "DropoutSchedule": {},
    # Enough batches are enough.
    "PreciseBatchNorm": {},
    # Zhang et al., section 3: 0.1 to 0.4 on ImageNet, 1 on CIFAR.
    "Mixup": {"alpha": {"low": 0.1, "high": 1.0, "log": True}, "probability": [0.5, 1.0]},
    # Yun et al.: 0.1 to 4 were tried, 1 was best; half of the batches on CIFAR, all on ImageNet.
    "CutMix": {"alpha": {"low": 0.25, "high": 4.0, "log": True}, "probability": [0.5, 1.0]},
    # Its schedule has a shape that a search cannot invent; whether small images cost accuracy can be asked.
    "ProgressiveResizing": {},
    # Szegedy et al., section 7: 0.1.
    "LabelSmoothing": {"smoothing": {"low": 0.02, "high": 0.2, "log": True}},
    # Norms of gradients differ by model; the usual 1 in the middle.
    "GradientClip": {"max_norm": {"low": 0.1, "high": 10.0, "log": True}},
    # Brock et al., section 4.1: 0.01 for large batches, more for small ones, up to 0.16.
    "AdaptiveGradientClip": {"clip": {"low": 0.01, "high": 0.16, "log": True}},
    "GradientCentralization": {},
    # Neelakantan et al., section 3: one of these three, with the decay left at 0.55.
    "GradientNoise": {"variance": [0.01, 0.3, 1.0]},
    "GradientSurgery": {},
    # Goyal et al.: 5 of 90 epochs; the shorter the run, the larger the share that is needed.
    "WarmupCosine": {"warmup": ["1%", "5%", "10%", "20%"], "final": [0.0, 0.01, 0.1]},
    # A schedule has a shape that a search cannot invent; whether it beats a constant rate can be asked.
    "LearningRate": {},
    # Its patience is in epochs, of which runs have few or many.
    "PlateauDecay": {"factor": [0.1, 0.2, 0.5]},
    # Times a rate of 0.001, around AdamW's usual 0.01 to 0.1.
    "WeightDecay": {"strength": {"low": 1e-4, "high": 0.3, "log": True}},
    # Of each, what the configuration uses.
    "NormPenalty": {
        "l1": {"low": 1e-7, "high": 1e-3, "log": True},
        "l2": {"low": 1e-6, "high": 1e-2, "log": True},
    },
    # Zhang et al., section 5: these values.
    "Lookahead": {"k": [5, 10], "alpha": [0.2, 0.5, 0.8]},
    # Foret et al., appendix C: 0.01 to 0.5; Kwon et al., ten times as much for the adaptive form.
    "SharpnessAware": {"rho": {"low": 0.01, "high": 0.5, "log": True}},
    # Half-lives of 7, 69, 693 and 6,931 steps: what suits follows from the length of the run.
    "EMAWeights": {"decay": [0.9, 0.99, 0.999, 0.9999]},
    # Izmailov et al.: the last quarter of a run's usual length; a bit more or less is worth a try.
    "SWAWeights": {"start": ["50%", "75%", "90%"]},
    # Kaddour: a few of the latest epochs; more are older than is good.
    "LAWA": {"k": [3, 6, 10]},
    # Methods have settings of their own, which a space of one's own can name.
    "WeightFusion": {},
}

OBSERVERS = ("GradientHealth", "Diagnosis", "RunReport", "ExactResume")

NOT_SEARCHED = {
    "MonteCarloDropout": "it acts when the trained module predicts, and changes no metric of validation",
    **dict.fromkeys(
        ("OptimizerMixin", "BalancedLosses", "Distillation", "GANMixin"),
        "it is part of a module, whose arguments a space names, such as model.init_args.lr",
    ),
    "ScheduleFree": "its optimizers do not step without it",
    "PostHocEMA": "lengths of its average are compared after training, and need no further trials",
    "ElasticWeightConsolidation": "judged by the new task alone, the one that remembers least would win",
    **dict.fromkeys(OBSERVERS, "it changes nothing in a run that is not resumed"),
}
