"""What a student loses where its predictions, or its hidden features, differ from those of teachers.

    (1 - alpha) H + alpha T ** 2 KL(softmax(z_t / T) || softmax(z_s / T)) + weight mean (P h_s - h_t) ** 2

``H`` is the loss on the labels, ``z`` are logits and ``h`` hidden features, which ``P`` projects to the width
of the teacher's. The factor T ** 2 keeps the gradients of the second term as large as those of the first,
whatever the temperature T. The mean is over samples (and positions), not over classes.

References: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
https://arxiv.org/abs/1503.02531, section 2; Fukuda et al., "Efficient Knowledge Distillation from an Ensemble
of Teachers", 2017, https://doi.org/10.21437/Interspeech.2017-614, for the mean of softened predictions of
several teachers; Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, https://arxiv.org/abs/1412.6550,
for hidden features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, mse_loss

from lightning_tricks.core import checks

__all__ = [
    "agreement",
    "as_logits",
    "check_labels",
    "check_predictions",
    "distillation_loss",
    "feature_loss",
    "mean_prediction",
]


def mean_prediction(
    teachers: Sequence[Tensor], weights: Sequence[float] | None = None, *, temperature: float
) -> Tensor:
    """Return the logarithm of the mean of softened predictions, in at least single precision.

    Args:
        teachers: Logits of each teacher, shape (n, classes, ...), all alike.
        weights: Of the teachers, above 0; only their ratios count. ``None`` for equal ones.
        temperature: Above 0; 1 leaves the logits as they are.

    Example:
        >>> one, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 100.0]])
        >>> mean_prediction([one, other], [3.0, 1.0], temperature=1.0).exp()
        tensor([[0.3750, 0.6250]])
    """
    shares = [1.0] * len(teachers) if weights is None else list(weights)
    total = sum(shares)
    soft = [
        log_softmax(_wide(logits) / temperature, 1) + math.log(share / total)
        for logits, share in zip(teachers, shares, strict=True)
    ]
    return soft[0] if len(soft) == 1 else torch.stack(soft).logsumexp(0)


def distillation_loss(
    student: Tensor,
    teachers: Tensor | Sequence[Tensor],
    *,
    temperature: float,
    weights: Sequence[float] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return T ** 2 times the mean KL divergence of softened predictions, shape (), in nats.

    Args:
        student: Logits, shape (n, classes, ...).
        teachers: Logits of the same shape, of one teacher or of each of several, of which the weighted mean
            of the softened predictions counts; no gradient flows into them.
        temperature: Above 0; 1 leaves the logits as they are.
        weights: Of the teachers (:func:`mean_prediction`).
        mask: True for the samples and positions that count, shape (n, ...), such as tokens that are no
            padding; ``None`` for all.

    Raises:
        TypeError: If a teacher's logits are no tensor.
        ValueError: If shapes differ, such as with a teacher of other classes.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 3.0]])
        >>> distillation_loss(student, teacher, temperature=4.0)  # equal predictions
        tensor(0.)
    """
    checks.in_range("temperature", temperature, 0.0, open_low=True, open_high=True)
    given = [teachers] if isinstance(teachers, Tensor) else list(teachers)
    _check_logits(student, given)
    target = mean_prediction([logits.detach() for logits in given], weights, temperature=temperature)
    own = log_softmax(_wide(student) / temperature, 1)
    each = kl_div(own, target, reduction="none", log_target=True).sum(1)
    if mask is None:
        return each.sum() * (temperature**2 / max(each.numel(), 1))
    if mask.shape != each.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be of booleans, shape {tuple(each.shape)}, got {mask.dtype}, {tuple(mask.shape)}"
        )
    return each.where(mask, 0.0).sum() * temperature**2 / mask.sum().clamp(min=1)


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of hidden features of one shape, shape ().

    Example:
        >>> feature_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        tensor(2.)
    """
    own = _wide(student)
    return mse_loss(own, teacher.detach().to(own.dtype))  # torch 2.7 has no gradient for two types


def agreement(student: Tensor, teachers: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Return the share of samples (and positions) of which student and teachers name the same class.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[9.0, 0.0], [0.0, 9.0]])
        >>> agreement(student, [teacher])
        tensor(0.5000)
    """
    named = mean_prediction(teachers, weights, temperature=1.0).argmax(1)
    return (student.argmax(1) == named).float().mean()


def check_labels(labels: Tensor, logits: Tensor, *, values: bool) -> None:
    """Accept labels that fit logits, shape (n, classes, ...): classes, shape (n, ...), or probabilities.

    Args:
        labels: The labels; -100 stands for a label that does not count.
        logits: The logits.
        values: Whether to look at the labels' values, for which a device must be waited for.

    Raises:
        ValueError: If shapes differ, or a label is no class.

    Example:
        >>> check_labels(torch.tensor([0, 3]), torch.zeros(2, 3), values=True)
        Traceback (most recent call last):
        ValueError: labels must lie in [0, 2], or be -100, got 3
    """
    hard = not labels.is_floating_point()
    expected = (logits.shape[0], *logits.shape[2:]) if hard else tuple(logits.shape)
    if labels.shape != expected:
        raise ValueError(f"labels must have shape {expected}, got {tuple(labels.shape)}")
    if hard and values:
        wrong = labels[((labels < 0) & (labels != -100)) | (labels >= logits.shape[1])]
        if wrong.numel():
            top = logits.shape[1] - 1
            raise ValueError(f"labels must lie in [0, {top}], or be -100, got {wrong[0].item()}")


def as_logits(logits: object) -> Tensor:
    """Return the student's ``logits``.

    Raises:
        TypeError: If they are no tensor, such as a batch that came first.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"student_logits must be a tensor, got {type(logits).__name__}: call self.distill(logits, batch)"
        )
    return logits


def check_predictions(teachers: Sequence[object], *, values: bool) -> None:
    """Accept what teachers return if it may be logits.

    Args:
        teachers: Of each teacher.
        values: Whether to look at the values, for which a device must be waited for.

    Raises:
        TypeError: If it is no tensor, such as a dictionary of several.
        ValueError: If a number is not finite.
    """
    for index, logits in enumerate(teachers):
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"teachers must return a tensor of logits, got {type(logits).__name__} of teacher {index}: "
                "override teacher_logits to take them out of it"
            )
        if values and not logits.isfinite().all():
            raise ValueError(
                f"teachers must predict finite logits, got others of teacher {index}: look for NaN in its "
                "weights and inputs"
            )


def _wide(tensor: Tensor) -> Tensor:
    # In at least single precision: in half, a divided logit would lose what tells classes apart.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_logits(student: Tensor, teachers: Sequence[Tensor]) -> None:
    if not teachers:
        raise ValueError("teachers must hold at least one teacher's logits, got none")
    check_predictions(teachers, values=False)
    for index, logits in enumerate(teachers):
        if student.ndim > 1 and logits.ndim > 1 and logits.shape[1] != student.shape[1]:
            raise ValueError(
                f"teachers must tell as many classes apart as the student, {student.shape[1]}, got "
                f"{logits.shape[1]} of teacher {index}"
            )
        if logits.shape != student.shape or student.ndim < 2:
            raise ValueError(
                f"a teacher's logits must have the shape of the student's, (n, classes, ...), got "
                f"{tuple(logits.shape)} for {tuple(student.shape)}"
            )
