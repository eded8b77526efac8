"""Mixup: means of two samples, with the mean of their labels.

    x <- share x + (1 - share) x',    t <- share t + (1 - share) t',    share ~ Beta(alpha, alpha)

with one ``share`` for a batch, and for x' and t' the same batch in another order.

Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018,
https://arxiv.org/abs/1710.09412.
"""

import random
from dataclasses import dataclass
from typing import final

from torch import Tensor

from lightning_tricks.objectives.mixed_batches import MixedBatches

__all__ = ["Mixup", "mix_inputs"]


def mix_inputs(inputs: Tensor, order: Tensor, *, share: float) -> Tensor:
    """Return the mean of each sample and of the one that ``order`` puts in its place.

    Args:
        inputs: Floating, shape (n, ...).
        order: A permutation of the samples, shape (n,).
        share: Weight of each sample itself, in [0, 1].

    Raises:
        TypeError: If ``inputs`` are not floating.

    Example:
        >>> import torch
        >>> mix_inputs(torch.tensor([0.0, 1.0]), torch.tensor([1, 0]), share=0.75)
        tensor([0.2500, 0.7500])
    """
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must be floating to have means, got {inputs.dtype}")
    return share * inputs + (1 - share) * inputs[order]


@final
@dataclass(eq=False, repr=False, kw_only=True)
class Mixup(MixedBatches):
    """Train on weighted means of two samples and of their labels (:func:`mix_inputs`).

    * **When** as a training batch has come to its device, before training sees it; never in evaluations.
    * **Changes** the batch that training gets: inputs are mixed, labels become probabilities.
    * **Logs** ``mixup/probability``, with which batches are mixed.
    * **Saves** how many batches it has seen, from which and ``seed`` all draws follow, and how the schedule
      lies.
    * **Cost** two copies of the inputs.
    * **Use** it to train long with little data or wrong labels; **not** for inputs that are no quantities,
      such as tokens, nor where training still under-fits.

    The loss must take probabilities as labels, as ``torch.nn.functional.cross_entropy`` does, which is then
    the loss of the paper; ``LabelSmoothing`` goes with it. Metrics in ``training_step`` that want class
    indices can take ``labels.argmax(1)``, the greater part, where labels are floating. Each process draws for
    its own share of the data.

    Args:
        classes: How many the labels have, at least 2.
        alpha: Both parameters of the beta distribution of a sample's own share, above 0; the greater, the
            nearer to the middle.
        probability: With which a batch is mixed at all, in [0, 1]; a number, a schedule or its text.
        inputs: Place or key of the inputs in a batch that is a tuple, list or dictionary.
        labels: Place or key of the labels: class indices, shape (n,), or probabilities, shape (n, classes).
        seed: Of the draws, at least 0.

    Example:
        Mixed at first, and the last tenth of the run as the data are:

        >>> Mixup(classes=10, probability="constant(1.0, over='90%') >> constant(0.0)").alpha
        0.2
    """

    alpha: float = 0.2

    def mix(self, inputs: Tensor, order: Tensor, share: float, draws: random.Random) -> tuple[Tensor, float]:
        return mix_inputs(inputs, order, share=share), share
