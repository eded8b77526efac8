"""Ready lists of techniques for the usual cases, with the settings that the literature gives for each.

Each function returns a :class:`~lightning_tricks.recipes.recipe.Recipe`: a list for
``Trainer(callbacks=...)`` that prints the source of each setting, and itself as YAML. The optimizer stays the
module's own, because base rate and momentum go with the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.core.select import Patterns
from lightning_tricks.gradients.clip import GradientClip
from lightning_tricks.network.spectral_norm import SpectralNorm
from lightning_tricks.network.unfreeze import ProgressiveUnfreeze
from lightning_tricks.network.weight_init import WeightInit
from lightning_tricks.network.zero_init import ZeroInitResidual
from lightning_tricks.recipes.recipe import Recipe
from lightning_tricks.updates.learning_rate import LearningRate
from lightning_tricks.updates.warmup_cosine import WarmupCosine
from lightning_tricks.updates.weight_decay import WeightDecay

__all__ = ["READY", "finetune", "from_scratch_cnn", "gan", "transformer"]

_BERT = "Devlin et al. 2019, arXiv 1810.04805"
_GOYAL = "Goyal et al. 2017, arXiv 1706.02677"
_KAIMING = "He et al. 2015, arXiv 1502.01852, section 2.2"
_LLAMA = "Touvron et al. 2023, arXiv 2302.13971, section 2.3"
_MOBILENET = "Howard et al. 2019, arXiv 1905.02244, section 6.1.1"
_PROGAN = "Karras et al. 2018, arXiv 1710.10196, appendix A.1"
_RESNET = "He et al. 2016, arXiv 1512.03385, section 3.4"
_SNGAN = "Miyato et al. 2018, arXiv 1802.05957, appendix A"
_TRICKS = "He et al. 2019, arXiv 1812.01187"
_ULMFIT = "Howard and Ruder 2018, arXiv 1801.06146"
_WGAN_GP = "Gulrajani et al. 2017, arXiv 1704.00028, appendix F"
_NAMES = "as your module names its parts"


def finetune(*, stages: Sequence[Patterns], weight_decay: bool = True) -> Recipe:
    """Return techniques that fine-tune a pretrained network of any kind with few examples.

    Stages open from the head down, deeper ones with lower rates, under ULMFiT's slanted triangle; its warm-up
    begins near 0, as all of ours do, and not at a 32nd. Clipping and decay are those of BERT's fine-tuning.

    Args:
        stages: Name patterns of each part of the network, from the head down; ``propose_stages`` lists them.
        weight_decay: Whether to decay weights. The optimizer's own decay must be 0 then.

    Example:
        >>> [type(each).__name__ for each in finetune(stages=["head", "body"])]
        ['GradientClip', 'WeightDecay', 'LearningRate', 'ProgressiveUnfreeze']
    """
    schedule = "warmup('10%') >> linear(to=0.03125)"
    unfreeze = ProgressiveUnfreeze(stages=stages, at="1 epoch", lr_factor=1 / 2.6)
    clip = (GradientClip(max_norm=1.0), {"max_norm": f"{_BERT}, the authors' optimization.py"})
    decay = (WeightDecay(strength=0.01), {"strength": f"{_BERT}, appendix A.2; also in their fine-tuning"})
    return Recipe(
        "Fine-tuning",
        [
            clip,
            *([decay] if weight_decay else []),
            (
                LearningRate(schedule=schedule),
                {"schedule": f"{_ULMFIT}, section 3.2: cut_frac 0.1, ratio 32"},
            ),
            (
                unfreeze,
                {
                    "stages": _NAMES,
                    "at": f"{_ULMFIT}, section 3.3",
                    "lr_factor": f"{_ULMFIT}, section 3.2",
                },
            ),
        ],
    )


def from_scratch_cnn(*, residual: bool = True, weight_decay: bool = True) -> Recipe:
    """Return techniques that train a convolution network from scratch, by SGD with momentum.

    For tens of epochs: where five are most of the run, shorten the warm-up. Initial weights are refused for a
    network that makes its own: leave ``WeightInit`` out then.

    Args:
        residual: Whether the network has residual blocks, which then start as the identity.
        weight_decay: Whether to decay weights. The optimizer's own decay must be 0 then.

    Example:
        >>> from_scratch_cnn(residual=False, weight_decay=False)[1]
        WarmupCosine(warmup='5 epochs', shape='linear', final=0.0, total=None)
    """
    decay = WeightDecay(strength=1e-4, form="l2", params=None)
    sources = {"strength": _RESNET, "form": _RESNET, "params": f"{_TRICKS}, section 3.1: no bias decay"}
    warmup = {"warmup": f"{_GOYAL}, section 2.2", "final": f"{_TRICKS}, section 5.1"}
    kaiming = WeightInit(scheme="kaiming_normal", nonlinearity="relu")
    zero = (ZeroInitResidual(params="*"), {"params": f"{_GOYAL}, section 5.1: the last weight of each block"})
    return Recipe(
        "A convolution network from scratch",
        [
            (kaiming, {"scheme": _KAIMING, "nonlinearity": _KAIMING}),
            *([zero] if residual else []),
            *([(decay, sources)] if weight_decay else []),
            (WarmupCosine(warmup="5 epochs", final=0.0), warmup),
            (EMAWeights(decay=0.9999), {"decay": _MOBILENET}),
        ],
    )


def transformer(*, weight_decay: bool = True) -> Recipe:
    """Return techniques that train a transformer from scratch, by AdamW with betas of 0.9 and 0.95.

    Args:
        weight_decay: Whether to decay weights. The optimizer's own decay must be 0 then.

    Example:
        >>> transformer()[0].max_norm
        1.0
    """
    decay = (WeightDecay(strength=0.1), {"strength": _LLAMA})
    warmup = f"{_BERT}, appendix A.2: 10,000 of 1,000,000 steps"
    return Recipe(
        "A transformer from scratch",
        [
            (GradientClip(max_norm=1.0), {"max_norm": _LLAMA}),
            *([decay] if weight_decay else []),
            (WarmupCosine(warmup="1%", final=0.1), {"warmup": warmup, "final": _LLAMA}),
        ],
    )


def gan(*, generator: Patterns = "generator", critic: Patterns | None = "critic") -> Recipe:
    """Return techniques for a generator and a critic that train against each other, by Adam.

    Args:
        generator: Name patterns of the generator, whose average is to be sampled from.
        critic: Those of the critic, whose weights get a largest singular value of 1; ``None`` where a
            gradient penalty limits it.

    Example:
        >>> gan(generator="net.generator", critic=None)[1].params
        'net.generator'
    """
    spectral = SpectralNorm(params="*" if critic is None else critic, n_power_iterations=1)
    return Recipe(
        "A generator and its critic",
        [
            *([(spectral, {"params": _NAMES, "n_power_iterations": _SNGAN})] if critic is not None else []),
            (LearningRate(schedule="linear(to=0.0)"), {"schedule": _WGAN_GP}),
            (EMAWeights(decay=0.999, params=generator), {"decay": _PROGAN, "params": _NAMES}),
        ],
    )


READY: dict[str, Callable[..., Recipe]] = {
    each.__name__: each for each in (finetune, from_scratch_cnn, transformer, gan)
}
"""All of them by name."""
