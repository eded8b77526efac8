"""The loss of distillation: against a case worked out by hand, torch, and the limit of high temperatures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_tricks.objectives.distillation_loss import distillation_loss, feature_loss


def test_a_case_by_hand() -> None:
    """Teacher (3/4, 1/4) and student (1/2, 1/2) at temperature 2: 3/4 ln(3/2) + 1/4 ln(1/2), times 4."""
    teacher = 2 * torch.tensor([[3.0, 1.0]]).log()
    found = distillation_loss(torch.zeros(1, 2), teacher, temperature=2.0)
    assert found.item() == pytest.approx(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4, 2)])
def test_without_temperature_it_is_cross_entropy_less_the_teachers_entropy(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    student, one, other = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    mean = (one.softmax(1) + other.softmax(1)) / 2
    entropy = -(mean * mean.log()).sum(1).mean()
    found = distillation_loss(student, [one, other], temperature=1.0)
    torch.testing.assert_close(found, cross_entropy(student, mean) - entropy)


def gradient(temperature: float) -> Tensor:
    torch.manual_seed(0)
    student = torch.randn(4, 10, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 10, dtype=torch.float64, requires_grad=True)
    distillation_loss(student, teacher, temperature=temperature).backward()
    assert teacher.grad is None
    apart = (student - teacher).detach()
    limit = (apart - apart.mean(1, keepdim=True)) / (4 * 10)  # equation 4 of the paper
    return (student.grad - limit).abs().max() / limit.abs().max()


def test_gradients_keep_their_size_at_high_temperatures() -> None:
    assert gradient(1000.0) < 1e-2


@pytest.mark.parametrize("teachers", [[], torch.zeros(2, 4), [torch.zeros(2, 3), torch.zeros(3, 3)]])
def test_teachers_of_other_classes_are_refused(teachers: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="got"):
        distillation_loss(torch.zeros(2, 3), teachers, temperature=4.0)


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_a_students_features_learn_from_a_teachers_of_another_type(kind: torch.dtype) -> None:
    student = torch.tensor([1.0, 2.0], dtype=kind, requires_grad=True)
    loss = feature_loss(student, torch.tensor([1.0, 4.0], dtype=torch.float32))
    loss.backward()
    assert (loss.item(), student.grad.tolist()) == (2.0, [0.0, -2.0])
    student = torch.tensor([1.0, 2.0], dtype=torch.float32, requires_grad=True)
    feature_loss(student, torch.tensor([1.0, 4.0], dtype=kind)).backward()
    assert student.grad.tolist() == [0.0, -2.0]
