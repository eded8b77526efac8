"""What the package offers by its own name: ``from lightning_tricks import EMAWeights``."""

from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.averaging.ema_decay import HalfLife, InverseDecay, PowerDecay
from lightning_tricks.averaging.lawa import LAWA
from lightning_tricks.averaging.lengths import evaluate_lengths
from lightning_tricks.averaging.post_hoc import PostHocEMA
from lightning_tricks.averaging.swa import SWAWeights
from lightning_tricks.averaging.synthesis import synthesize_ema
from lightning_tricks.core.collect import BestK, EverySteps, LastEpochs
from lightning_tricks.core.conflicts import ConflictError
from lightning_tricks.core.cycles import cosine_restarts, cyclic
from lightning_tricks.core.decays import exponential_decay, inverse_sqrt, inverse_time, multistep, step
from lightning_tricks.core.fisher import fisher_information
from lightning_tricks.core.phases import one_cycle, stable_decay
from lightning_tricks.core.schedule import Schedule
from lightning_tricks.core.shapes import constant, cosine, exponential, linear, polynomial, warmup
from lightning_tricks.fusion.aligned import Aligned
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.breadcrumbs import Breadcrumbs
from lightning_tricks.fusion.curve import interpolation_curve
from lightning_tricks.fusion.dare import Dare, DareTies
from lightning_tricks.fusion.fed_avg import FedAvg
from lightning_tricks.fusion.fed_opt import FedAdam, FedAvgM
from lightning_tricks.fusion.fisher import FisherWeighted
from lightning_tricks.fusion.fuse import fuse
from lightning_tricks.fusion.fusion import WeightFusion
from lightning_tricks.fusion.greedy_soup import GreedySoup
from lightning_tricks.fusion.interpolate import Interpolate
from lightning_tricks.fusion.layerwise import Layerwise
from lightning_tricks.fusion.learned_soup import LearnedSoup, learned_coefficients
from lightning_tricks.fusion.model_stock import ModelStock
from lightning_tricks.fusion.nelder_mead_soup import NelderMeadSoup
from lightning_tricks.fusion.over_depth import OverDepth
from lightning_tricks.fusion.permutation_spec import permutation_spec
from lightning_tricks.fusion.probe import Probe
from lightning_tricks.fusion.pruned import Pruned
from lightning_tricks.fusion.reg_mean import RegMean, gram_matrices
from lightning_tricks.fusion.robust import Median, TrimmedMean
from lightning_tricks.fusion.similarity import SimilarityWeighted
from lightning_tricks.fusion.slerp import Slerp
from lightning_tricks.fusion.task_arithmetic import TaskArithmetic
from lightning_tricks.fusion.ties import Ties
from lightning_tricks.gradients.adaptive import AdaptiveGradientClip
from lightning_tricks.gradients.centralization import GradientCentralization
from lightning_tricks.gradients.clip import GradientClip
from lightning_tricks.gradients.noise import GradientNoise
from lightning_tricks.gradients.surgery import GradientSurgery
from lightning_tricks.gradients.surgery_methods import CAGrad, PCGrad, Sum, TorchJD
from lightning_tricks.gradients.thresholds import Percentile, ZScore
from lightning_tricks.lifecycle.checkpoints import average_state, live_state
from lightning_tricks.lifecycle.configuration import to_yaml
from lightning_tricks.lifecycle.exact_resume import ExactResume
from lightning_tricks.lifecycle.export import export_average
from lightning_tricks.network.dropout_schedule import DropoutSchedule
from lightning_tricks.network.freeze import Freeze
from lightning_tricks.network.lsuv import LSUV
from lightning_tricks.network.monte_carlo_dropout import MonteCarloDropout, Spread
from lightning_tricks.network.openings import Plateau
from lightning_tricks.network.precise_batchnorm import PreciseBatchNorm
from lightning_tricks.network.proposal import propose_stages
from lightning_tricks.network.replace_norm import ReplaceNorm, replace_norm_
from lightning_tricks.network.spectral_norm import SpectralNorm, spectral_norm_
from lightning_tricks.network.unfreeze import ProgressiveUnfreeze
from lightning_tricks.network.weight_init import WeightInit, initialize_
from lightning_tricks.network.zero_init import ZeroInitResidual, zero_init_residual_
from lightning_tricks.objectives.adversarial_labels import NoisyLabels
from lightning_tricks.objectives.adversarial_losses import Hinge, LeastSquares, NonSaturating, Wasserstein
from lightning_tricks.objectives.balanced_losses import BalancedLosses
from lightning_tricks.objectives.class_balance import balanced_sampler, class_weights
from lightning_tricks.objectives.consolidation import ElasticWeightConsolidation
from lightning_tricks.objectives.critic_penalties import R1, R2, GradientPenalty
from lightning_tricks.objectives.cut_mix import CutMix
from lightning_tricks.objectives.distillation import Distillation
from lightning_tricks.objectives.distillation_loss import distillation_loss
from lightning_tricks.objectives.gan_mixin import GANMixin
from lightning_tricks.objectives.gan_player import Player
from lightning_tricks.objectives.gan_signals import FailureSignals
from lightning_tricks.objectives.grad_norm import GradNorm
from lightning_tricks.objectives.label_smoothing import LabelSmoothing
from lightning_tricks.objectives.latent import Latent
from lightning_tricks.objectives.layer_noise import LayerNoise
from lightning_tricks.objectives.loss_balance import FixedWeights
from lightning_tricks.objectives.mixup import Mixup
from lightning_tricks.objectives.progressive_resizing import ProgressiveResizing
from lightning_tricks.objectives.sample_grid import SampleGrid
from lightning_tricks.objectives.smoothed_losses import (
    smooth_labels,
    smoothed_binary_cross_entropy,
    smoothed_cross_entropy,
)
from lightning_tricks.objectives.teachers import Teacher, Teachers
from lightning_tricks.objectives.uncertainty_balance import UncertaintyBalance
from lightning_tricks.objectives.value_balances import DynamicWeightAverage, MagnitudeBalance, RandomWeights
from lightning_tricks.reporting.diagnosis import Diagnosis
from lightning_tricks.reporting.gradient_health import GradientHealth
from lightning_tricks.reporting.run_report import RunReport
from lightning_tricks.study.ablation import Ablation
from lightning_tricks.study.search import Search
from lightning_tricks.updates.learning_rate import LearningRate
from lightning_tricks.updates.lookahead import Lookahead
from lightning_tricks.updates.norm_penalty import NormPenalty
from lightning_tricks.updates.optimizer_mixin import OptimizerMixin
from lightning_tricks.updates.optimizer_settings import OptimizerSettings
from lightning_tricks.updates.plateau_decay import PlateauDecay
from lightning_tricks.updates.schedule_free import ScheduleFree
from lightning_tricks.updates.sharpness import SharpnessAware
from lightning_tricks.updates.warmup_cosine import WarmupCosine
from lightning_tricks.updates.weight_decay import WeightDecay

__all__ = [
    "LAWA",
    "LSUV",
    "R1",
    "R2",
    "Ablation",
    "AdaptiveGradientClip",
    "Aligned",
    "Average",
    "BalancedLosses",
    "BestK",
    "Breadcrumbs",
    "CAGrad",
    "ConflictError",
    "CutMix",
    "Dare",
    "DareTies",
    "Diagnosis",
    "Distillation",
    "DropoutSchedule",
    "DynamicWeightAverage",
    "EMAWeights",
    "ElasticWeightConsolidation",
    "EverySteps",
    "ExactResume",
    "FailureSignals",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FisherWeighted",
    "FixedWeights",
    "Freeze",
    "GANMixin",
    "GradNorm",
    "GradientCentralization",
    "GradientClip",
    "GradientHealth",
    "GradientNoise",
    "GradientPenalty",
    "GradientSurgery",
    "GreedySoup",
    "HalfLife",
    "Hinge",
    "Interpolate",
    "InverseDecay",
    "LabelSmoothing",
    "LastEpochs",
    "Latent",
    "LayerNoise",
    "Layerwise",
    "LearnedSoup",
    "LearningRate",
    "LeastSquares",
    "Lookahead",
    "MagnitudeBalance",
    "Median",
    "Mixup",
    "ModelStock",
    "MonteCarloDropout",
    "NelderMeadSoup",
    "NoisyLabels",
    "NonSaturating",
    "NormPenalty",
    "OptimizerMixin",
    "OptimizerSettings",
    "OverDepth",
    "PCGrad",
    "Percentile",
    "Plateau",
    "PlateauDecay",
    "Player",
    "PostHocEMA",
    "PowerDecay",
    "PreciseBatchNorm",
    "Probe",
    "ProgressiveResizing",
    "ProgressiveUnfreeze",
    "Pruned",
    "RandomWeights",
    "RegMean",
    "ReplaceNorm",
    "RunReport",
    "SWAWeights",
    "SampleGrid",
    "Schedule",
    "ScheduleFree",
    "Search",
    "SharpnessAware",
    "SimilarityWeighted",
    "Slerp",
    "SpectralNorm",
    "Spread",
    "Sum",
    "TaskArithmetic",
    "Teacher",
    "Teachers",
    "Ties",
    "TorchJD",
    "TrimmedMean",
    "UncertaintyBalance",
    "WarmupCosine",
    "Wasserstein",
    "WeightDecay",
    "WeightFusion",
    "WeightInit",
    "ZScore",
    "ZeroInitResidual",
    "average_state",
    "balanced_sampler",
    "class_weights",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "distillation_loss",
    "evaluate_lengths",
    "exponential",
    "exponential_decay",
    "export_average",
    "fisher_information",
    "fuse",
    "gram_matrices",
    "initialize_",
    "interpolation_curve",
    "inverse_sqrt",
    "inverse_time",
    "learned_coefficients",
    "linear",
    "live_state",
    "multistep",
    "one_cycle",
    "permutation_spec",
    "polynomial",
    "propose_stages",
    "replace_norm_",
    "smooth_labels",
    "smoothed_binary_cross_entropy",
    "smoothed_cross_entropy",
    "spectral_norm_",
    "stable_decay",
    "step",
    "synthesize_ema",
    "to_yaml",
    "warmup",
    "zero_init_residual_",
]
