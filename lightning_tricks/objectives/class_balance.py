"""Unbalanced classes: weights for the loss, or a sampler that draws all classes equally often.

    w_c = n / (K n_c)

for ``n`` labels of ``K`` classes, ``n_c`` of class ``c``: on average over the labels a weight is 1, and all
classes together weigh the same. Use one of the two: both at once favour rare classes twice.

Reference: King and Zeng, "Logistic Regression in Rare Events Data", 2001,
https://doi.org/10.1093/oxfordjournals.pan.a004868.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import WeightedRandomSampler

from lightning_tricks.core import checks

__all__ = ["balanced_sampler", "class_weights"]

# torch.multinomial draws from no more.
_MOST = 2**24


def class_weights(
    labels: Tensor | Sequence[int], *, classes: int | None = None, ignore_index: int = -100
) -> Tensor:
    """Return the weight of each class for a loss, ``nn.CrossEntropyLoss(weight=class_weights(labels))``.

    Args:
        labels: Class indices of all training data, of any shape, as those of pixels.
        classes: How many there are; ``None`` for one more than the greatest label.
        ignore_index: Label that stands for no class.

    Returns:
        Shape (classes,), on the CPU, in torch's default type.

    Raises:
        TypeError: If ``labels`` are no whole numbers.
        ValueError: If there are none, one lies outside the classes, or a class has none: it would weigh
            infinitely much.

    Example:
        >>> class_weights([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
        tensor([0.5556, 1.6667, 1.6667])
    """
    counts = _counts(_whole(labels), classes, ignore_index)
    return (counts.sum() / (len(counts) * counts.double())).to(torch.get_default_dtype())


def balanced_sampler(
    labels: Tensor | Sequence[int],
    *,
    classes: int | None = None,
    num_samples: int | None = None,
    seed: int = 0,
) -> WeightedRandomSampler:
    """Return a sampler that draws each class equally often on average, with replacement.

    ``DataLoader(data, batch_size, sampler=balanced_sampler(labels))`` takes the place of ``shuffle=True``.
    Over several processes Lightning wraps it: all draw the same list, by the common seed, and each takes its
    share; with ``use_distributed_sampler=False`` each would train on the whole list.

    Args:
        labels: Class index of each sample, in the order of the data set, shape (n,).
        classes: How many there are; ``None`` for one more than the greatest label.
        num_samples: Draws per epoch; ``None`` for as many as there are samples.
        seed: Where the draws start; they go on from epoch to epoch.

    Raises:
        TypeError: If ``labels`` are no whole numbers.
        ValueError: If there are none or more than torch can draw from (2 ** 24), they have several axes, one
            lies outside the classes, or a class has none.

    Example:
        >>> labels = torch.tensor([0] * 900 + [1] * 100)
        >>> drawn = labels[list(balanced_sampler(labels, seed=1))]
        >>> drawn.bincount().tolist()
        [487, 513]
    """
    whole = _whole(labels)
    if whole.ndim != 1 or len(whole) > _MOST:
        raise ValueError(f"labels must be one for each of at most {_MOST} samples, got {tuple(whole.shape)}")
    checks.whole("seed", seed)
    draws = len(whole) if num_samples is None else checks.whole("num_samples", num_samples, 1)
    weights = 1 / _counts(whole, classes).double()
    generator = torch.Generator().manual_seed(seed)
    return WeightedRandomSampler(weights[whole].tolist(), draws, generator=generator)


def _whole(labels: Tensor | Sequence[int]) -> Tensor:
    try:
        found = torch.as_tensor(labels).cpu()
    except (RuntimeError, TypeError, ValueError):
        raise TypeError(
            f"labels must be whole numbers, got {type(labels).__name__}: give the class of each sample, such "
            "as data.train_set.targets"
        ) from None
    if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        raise TypeError(f"labels must be whole numbers, got {found.dtype}")
    return found.long()


def _counts(labels: Tensor, classes: int | None, *ignored: int) -> Tensor:
    """Return how many labels each class has."""
    kept = labels.flatten()
    for index in ignored:
        kept = kept[kept != index]
    if not len(kept):
        raise ValueError("labels must hold at least one of a class, got none")
    least, greatest = (int(end) for end in kept.aminmax())
    number = greatest + 1 if classes is None else checks.whole("classes", classes, 1)
    if least < 0 or greatest >= number:
        outside = least if least < 0 else greatest
        raise ValueError(f"labels must hold classes from 0 to {number - 1}, got {outside}")
    counts = kept.bincount(minlength=number)
    if missing := (counts == 0).nonzero().flatten().tolist():
        raise ValueError(f"labels must hold every class, got none of {checks.listed(missing)} of {number}")
    return counts
