"""Losses with smoothed labels: a share of every label's weight is spread evenly over all classes.

    t <- (1 - smoothing) t + smoothing / classes

``t`` is a label as probabilities: 1 for its class, or soft already; of a binary label the one probability, of
two classes. The loss cannot fall below the entropy of the smoothed label: 0.50 nats for 0.1 and ten classes.

Reference: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015,
https://arxiv.org/abs/1512.00567, section 7.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_tricks.core import checks

__all__ = ["check_classes", "smooth_labels", "smoothed_binary_cross_entropy", "smoothed_cross_entropy"]


def smooth_labels(labels: Tensor, *, smoothing: float = 0.1, classes: int) -> Tensor:
    """Return ``labels`` as smoothed probabilities.

    Args:
        labels: Class indices in [0, classes), shape (), (n,) or (n, ...); or floating: probabilities of the
            classes in axis 1 (axis 0 of one label), or with two classes of the second alone, of any shape.
        smoothing: Share that is spread over all classes, in [0, 1].
        classes: How many there are, at least 2.

    Returns:
        Probabilities; of class indices those of the classes in axis 1, shape (n, classes, ...), in torch's
        default type.

    Raises:
        TypeError: If ``labels`` are boolean or complex, or no tensor.
        ValueError: If labels on the CPU lie outside the classes, or outside [0, 1] (a GPU is not waited
            for), or floating ones are not of so many classes.

    Example:
        >>> smooth_labels(torch.tensor([2, 0]), smoothing=0.3, classes=3)
        tensor([[0.1000, 0.1000, 0.8000],
                [0.8000, 0.1000, 0.1000]])
        >>> smooth_labels(torch.tensor([1.0, 0.0, 1.0]), smoothing=0.1, classes=2)
        tensor([0.9500, 0.0500, 0.9500])
    """
    checks.in_range("smoothing", smoothing, 0.0, 1.0)
    checks.whole("classes", classes, 2)
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
    if labels.dtype == torch.bool or labels.is_complex():
        raise TypeError(f"labels must be class indices or floating probabilities, got {labels.dtype}")
    if not labels.is_floating_point():
        check_classes("labels", labels, classes)
        # Not F.one_hot, which torch cannot vectorise.
        hot = labels.unsqueeze(1 if labels.ndim else 0) == _along_axis_1(labels, classes)
        labels = hot.to(torch.get_default_dtype())
    elif classes > 2 and (labels.ndim == 0 or labels.shape[min(1, labels.ndim - 1)] != classes):
        raise ValueError(f"labels must hold {classes} classes in axis 1, got shape {tuple(labels.shape)}")
    else:
        _check_probabilities(labels)
    return labels * (1 - smoothing) + smoothing / classes


def _along_axis_1(labels: Tensor, classes: int) -> Tensor:
    """Return the classes in a shape that broadcasts with ``labels`` of one axis more."""
    numbers = torch.arange(classes, device=labels.device)
    return numbers.view(classes, *[1] * max(labels.ndim - 1, 0))


def check_classes(name: str, labels: Tensor, classes: int, *ignored: int) -> None:
    """Refuse class indices on the CPU that lie outside the classes.

    Args:
        name: Of what holds them.
        labels: Of any shape and whole numbers.
        classes: How many there are.
        ignored: Indices that are let through.

    Raises:
        ValueError: If there is one, with the first.
    """
    if labels.device.type != "cpu" or not labels.numel():  # a look at a GPU's would wait for it
        return
    outside = (labels < 0) | (labels >= classes)
    for index in ignored:
        outside &= labels != index
    if outside.any():
        least = labels[outside][0].item()
        raise ValueError(f"{name} must hold classes from 0 to {classes - 1}, got {least}")


def _check_probabilities(labels: Tensor) -> None:
    if labels.device.type != "cpu":
        return
    # Labels that were mixed in half precision may be a little above 1.
    outside = (labels < 0.0) | (labels > 1.01) | labels.isnan()
    if outside.any():
        raise ValueError(f"labels must be probabilities, in [0, 1], got {labels[outside][0].item()}")


def smoothed_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    smoothing: float = 0.1,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Return torch's cross entropy with smoothed labels, in nats, for those who call the loss themselves.

    In training alone, so that validation stays comparable: ``smoothing=0.1 if self.training else 0.0``. With
    0 it is the plain loss to the bit.

    Args:
        logits: Shape (n, classes), (n, classes, ...) as in segmentation, or (classes,).
        target: Class indices, shape (n, ...); or probabilities in the shape of ``logits``, which are
            smoothed once more: give mixed labels (:class:`Mixup`), not ones that are smoothed already.
        smoothing: Share that is spread over all classes, in [0, 1].
        weight: Of each class, shape (classes,); it counts for the spread share, too. With class indices the
            mean is over the weights of the labels, with probabilities over the labels, as torch has it.
        ignore_index: Class index that adds nothing, neither to the sum nor to the mean; without meaning for
            probabilities. If all labels are ignored, the mean is NaN, as torch's.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: If class indices on the CPU lie outside the classes.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
        >>> labels = torch.tensor([0, -100])  # the second has none
        >>> for smoothing in (0.0, 0.1):
        ...     print(round(smoothed_cross_entropy(logits, labels, smoothing=smoothing).item(), 4))
        0.036
        0.3026
    """
    checks.in_range("smoothing", smoothing, 0.0, 1.0)
    if not target.is_floating_point():
        check_classes("target", target, logits.shape[min(1, logits.ndim - 1)], ignore_index)
    return F.cross_entropy(
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=smoothing,
    )


def smoothed_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    smoothing: float = 0.1,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return torch's binary cross entropy on logits with smoothed labels, in nats.

    Args:
        logits: Of the second class, of any shape; or of several labels that do not exclude one another.
        target: Floating labels 0 and 1, or probabilities, in the shape of ``logits``.
        smoothing: Share that is spread over the two classes, in [0, 1]: a label 1 becomes 1 - smoothing / 2.
        weight: Of each entry; broadcasts.
        pos_weight: Of the second class; broadcasts.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        TypeError: If ``target`` is not floating.
        ValueError: If entries of it on the CPU lie outside [0, 1].

    Example:
        >>> loss = smoothed_binary_cross_entropy(torch.tensor([0.0]), torch.tensor([1.0]), smoothing=0.2)
        >>> round(loss.item(), 4)  # ln 2, whatever the label
        0.6931
    """
    if not target.is_floating_point():
        raise TypeError(f"target must be floating, got {target.dtype}: use target.float()")
    smooth = smooth_labels(target, smoothing=smoothing, classes=2)
    return F.binary_cross_entropy_with_logits(
        logits, smooth, weight, pos_weight=pos_weight, reduction=reduction
    )
