"""Random states come back after a detour through a file, down to the half of a pair that waits."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from lightning_tricks.lifecycle.randomness import (
    generators_of,
    lost_devices,
    random_states,
    set_random_states,
)


def draws() -> list[float]:
    """Return numbers of every kind; normal ones are drawn in pairs, of which the second waits."""
    return [
        random.random(),
        random.gauss(0.0, 1.0),
        float(np.random.rand()),
        float(np.random.standard_normal()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def test_the_same_numbers_are_drawn_again(tmp_path: Path) -> None:
    draws()  # so that halves of pairs wait
    torch.save(random_states(), tmp_path / "states")
    first, second = draws(), draws()
    assert first != second
    set_random_states(torch.load(tmp_path / "states", weights_only=True))
    assert [draws(), draws()] == [first, second]


def test_asking_draws_nothing() -> None:
    before = random_states()
    expected = draws()
    set_random_states(before)
    random_states()
    assert draws() == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_the_same_again() -> None:
    torch.rand(1, device="cuda")
    before = random_states()
    expected = torch.rand(3, device="cuda")
    set_random_states(before)
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_only_another_number_of_cuda_devices_is_a_loss() -> None:
    states = random_states()
    assert lost_devices(states) == []
    here = torch.cuda.device_count()
    many = {**states, "cuda": [torch.get_rng_state()] * (here + 1)}
    assert lost_devices(many) == [
        f"the checkpoint was written with {here + 1} CUDA devices in sight, not {here}"
    ]
    expected = draws()
    set_random_states(many)  # the others come back all the same
    assert draws() == expected


def test_generators_are_found_in_the_loader_and_in_its_samplers() -> None:
    one, other = torch.Generator(), torch.Generator()
    samples = torch.arange(4)
    assert generators_of(DataLoader(samples)) == []
    assert one in generators_of(DataLoader(samples, shuffle=True, generator=one))
    assert generators_of(DataLoader(samples, sampler=RandomSampler(samples, generator=other)))[0] is other
    assert generators_of([1, 2]) == []
