"""What a student loses where its predictions differ from those of teachers.

    (1 - alpha) H + alpha T ** 2 KL(softmax(z_t / T) || softmax(z_s / T))

``H`` is the loss on the labels. The factor T ** 2 keeps the gradients of the second term as large as those of
the first, whatever the temperature T. The mean is over samples (and positions), not over classes.

References: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
https://arxiv.org/abs/1503.02531, section 2; Fukuda et al., "Efficient Knowledge Distillation from an Ensemble
of Teachers", 2017, for the mean of softened predictions of several teachers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from lightning_tricks.core import checks

__all__ = ["distillation_loss"]


def distillation_loss(student: Tensor, teachers: Tensor | Sequence[Tensor], *, temperature: float) -> Tensor:
    """Return T ** 2 times the mean KL divergence of softened predictions, shape (), in nats.

    Args:
        student: Logits, shape (n, classes, ...).
        teachers: Logits of the same shape, of one teacher or of each of several, of which the mean of the
            softened predictions counts; no gradient flows into them.
        temperature: Above 0; 1 leaves the logits as they are.

    Raises:
        ValueError: If shapes differ, such as with a teacher of other classes.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 3.0]])
        >>> distillation_loss(student, teacher, temperature=4.0)  # equal predictions
        tensor(0.)
    """
    checks.in_range("temperature", temperature, 0.0, open_low=True, open_high=True)
    given = [teachers] if isinstance(teachers, Tensor) else list(teachers)
    if not given:
        raise ValueError("teachers must hold at least one teacher's logits, got none")
    for logits in given:
        if logits.shape != student.shape or student.ndim < 2:
            raise ValueError(
                f"a teacher's logits must have the shape of the student's, (n, classes, ...), got "
                f"{tuple(logits.shape)} for {tuple(student.shape)}"
            )
    # In at least single precision: in half, a divided logit would lose what tells classes apart.
    wide = torch.promote_types(student.dtype, torch.float32)
    soft = torch.stack([log_softmax(logits.detach().to(wide) / temperature, 1) for logits in given])
    target = soft.logsumexp(0) - torch.tensor(float(len(given))).log().to(soft)
    own = log_softmax(student.to(wide) / temperature, 1)
    positions = student.numel() // student.shape[1]
    return kl_div(own, target, reduction="sum", log_target=True) * (temperature**2 / max(positions, 1))
