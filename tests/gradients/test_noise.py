"""Gradient noise: its distribution, its schedule, and that it is the same wherever it must be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_tricks import ConflictError, GradientClip, GradientNoise
from lightning_tricks.core.seeds import seed_of
from lightning_tricks.gradients.noise import add_noise_, noise_std
from tests.contract import test_laws
from tests.contract.cases import CASES
from tests.contract.regimes import REGIMES
from tests.contract.test_together import reads_per_step
from tests.toys import Loader, Toy, TwoOptimizers, trainer


def noise(*shapes: tuple[int, ...], seed: int = 0, std: float = 1.0, dtype: Any = None) -> list[Tensor]:
    """Return what is added to zeros."""
    grads = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    add_noise_(grads, std=std, seed=seed)
    return grads


def test_the_papers_annealing() -> None:
    # Its settings: variance 0.3, decay 0.55; after 99 steps 0.3 / 100 ** 0.55 = 0.3 / 12.589.
    assert noise_std(0, variance=0.3, decay=0.55) == pytest.approx(0.5477226)
    assert noise_std(99, variance=0.3, decay=0.55) ** 2 == pytest.approx(0.0238298, rel=1e-4)
    assert noise_std(5, variance=4.0, decay=0.0) == 2.0
    assert noise_std(5, variance=0.0, decay=1.0) == 0.0
    assert noise_std(10**9, variance=1.0, decay=1e308) == 0.0


def test_entries_are_independent_and_normal() -> None:
    first, second = noise((200, 100), (20_000,), std=3.0)
    # Bounds of five standard errors of the estimates from 20,000 numbers.
    for each in (first.flatten(), second):
        assert abs(each.mean().item()) < 5 * 3 / math.sqrt(2e4)
        assert each.std().item() == pytest.approx(3.0, rel=5 / math.sqrt(4e4))
        assert (each.abs() < 3.0).float().mean().item() == pytest.approx(0.6827, abs=0.017)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second]))[0, 1].item()) < 5 / math.sqrt(2e4)
    assert abs(torch.corrcoef(first[:2])[0, 1].item()) < 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_types_and_shapes(dtype: torch.dtype) -> None:
    found = noise((100,), (), (0, 3), dtype=dtype)
    assert [each.dtype for each in found] == [dtype] * 3
    assert found[0].abs().std() > 0.3


def test_nothing_is_added_where_the_deviation_is_zero() -> None:
    grad = torch.tensor([-0.0, math.inf])
    add_noise_([grad], std=0.0, seed=0)
    assert torch.signbit(grad).tolist() == [True, False]


def test_seeds() -> None:
    assert torch.equal(noise((9,), seed=1)[0], noise((9,), seed=1)[0])
    assert not torch.equal(noise((9,), seed=1)[0], noise((9,), seed=2)[0])
    keys = [
        (seed, label, draw, [rank])
        for seed in range(3)
        for label in (None, "a")
        for draw in range(3)
        for rank in range(3)
    ]
    assert len({seed_of(*key) for key in keys}) == len(keys)
    # What `printf "(0, None, 0, 0, [])" | b2sum -l 56` prints; another, and no run could go on as it began.
    assert seed_of(0, None, 0, 0, []) == 0xFF1E5D0C493FD4


class Added(Callback):
    """Collects what is added to the gradients at each step, between two of them."""

    def __init__(self) -> None:
        self.before: list[Tensor] = []
        self.seen: list[list[Tensor]] = []
        self.closing = False

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        grads = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
        if self.closing:
            self.seen.append([now - then for now, then in zip(grads, self.before, strict=True)])
        self.before, self.closing = grads, not self.closing


@pytest.mark.parametrize("module", [Toy, TwoOptimizers])
def test_each_step_and_each_optimizer_gets_noise_of_its_own(module: type[Toy]) -> None:
    added = Added()
    trainer(added, GradientNoise(variance=100.0, decay=0.0), added).fit(module(), Loader())
    firsts = [tuple(round(x, 3) for x in step[0].flatten()[:3].tolist()) for step in added.seen]
    assert len(set(firsts)) == len(firsts) == (15 if module is Toy else 30)
    together = torch.cat([each.flatten() for step in added.seen for each in step])
    assert together.std().item() == pytest.approx(10.0, rel=0.1)


def test_the_schedule_and_the_decay_multiply() -> None:
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            seen.append(trainer.callback_metrics["gradient_noise/std"].item())

    trainer(GradientNoise(variance="0.09 * linear(to=0.0)", decay=1.0), Look()).fit(Toy(), Loader())
    assert seen == pytest.approx([0.3 * math.sqrt((1 - t / 15) / (1 + t)) for t in range(15)])


def test_only_what_params_matches_and_labels_differ() -> None:
    added = Added()
    both = [
        GradientNoise(label=label, variance=1.0, params=params)
        for label, params in (("a", "body.0.weight"), ("b", "head.weight"))
    ]
    trainer(added, *both, added, max_steps=1).fit(Toy(), Loader())
    (step,) = added.seen
    named = dict(zip([name for name, _ in Toy().named_parameters()], step, strict=True))
    assert {name for name, value in named.items() if value.any()} == {"body.0.weight", "head.weight"}
    # Both begin their own sequence; of one seed alone the same would come.
    first, second = (named[name].flatten()[:8] for name in ("body.0.weight", "head.weight"))
    assert not torch.allclose(first, second, atol=1e-3)


def test_resuming_needs_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradientNoise, "restore", lambda self, state: None)
    with pytest.raises(AssertionError):
        test_laws.test_an_active_run_differs_and_resumes(
            CASES["GradientNoise"], ("on_train_batch_end", 4), REGIMES["fp32"], tmp_path
        )


def test_its_place_is_before_clipping() -> None:
    with pytest.raises(ConflictError, match="in the order GradientNoise, GradientClip; got GradientClip"):
        trainer(GradientClip(), GradientNoise()).fit(Toy(), Loader())


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_is_read_back_to_the_host(fused: bool) -> None:
    assert reads_per_step(GradientNoise(), fused=fused) == reads_per_step(fused=fused)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"variance": -1.0}, r"variance must lie in \[0.0, inf\), got -1.0"),
        ({"decay": -1.0}, r"decay must lie in \[0.0, inf\), got -1.0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 1.0}, "seed must be a whole number, got 1.0"),
        ({"params": "noise"}, "params must match a parameter, got 'noise'"),
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        trainer(GradientNoise(**bad)).fit(Toy(), Loader())
