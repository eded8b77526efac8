"""Methods of gradient surgery, held against projections of the gradients themselves, scipy and torchjd."""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torchjd import aggregation

from lightning_tricks import CAGrad, PCGrad, Sum, TorchJD
from lightning_tricks.gradients.surgery_methods import WEIGHTINGS, SurgeryMethod

METHODS = [Sum(), PCGrad(), CAGrad(), CAGrad(0.9), TorchJD("MGDA"), TorchJD("IMTLG"), TorchJD("AlignedMTL")]


def gradients(count: int, size: int, seed: int, *, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return drawn * torch.logspace(-spread / 2, spread / 2, count, dtype=torch.float64)[:, None]


def weights(method: SurgeryMethod, g: Tensor, seed: int = 0) -> Tensor:
    return method.weights(g @ g.T, torch.Generator().manual_seed(seed))


def projected(g: Tensor, seed: int) -> Tensor:
    """Return what algorithm 1 of the PCGrad paper makes of the gradients themselves."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(g), generator=generator).tolist() for _ in g]
    total = torch.zeros_like(g[0])
    for i, order in enumerate(orders):
        own = g[i].clone()
        for j in order:
            if j != i and own @ g[j] < 0:
                own -= (own @ g[j]) / (g[j] @ g[j]) * g[j]
        total += own
    return total


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_is_the_projection_of_the_paper(count: int, seed: int) -> None:
    g = gradients(count, 4, seed)
    torch.testing.assert_close(weights(PCGrad(), g, seed) @ g, projected(g, seed), rtol=0, atol=1e-12)


def test_pcgrad_depends_on_the_order_and_only_with_three_losses() -> None:
    for count, differ in ((2, False), (4, True)):
        found = {tuple(weights(PCGrad(), gradients(count, 3, 1), seed).tolist()) for seed in range(5)}
        assert (len(found) > 1) is differ


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_of_two_losses_is_that_of_torchjd(seed: int) -> None:
    g = gradients(2, 3, seed)
    torch.testing.assert_close(weights(PCGrad(), g), aggregation.PCGradWeighting()(g @ g.T))


def worst_gain(g: Tensor, step: Tensor) -> float:
    """Return how much the loss that gains least gains by ``step``, whose size is that of the mean."""
    return float((g @ step).min())


def optimum(g: Tensor, c: float) -> float:
    """Return the least of CAGrad's dual objective over the simplex, by scipy, from several starts."""
    products, count = (g @ g.T).numpy(), len(g)
    reach = c * np.sqrt(products.mean())

    def dual(w: np.ndarray) -> float:
        return float(w @ products.mean(1) + reach * np.sqrt(max(w @ products @ w, 0.0)))

    random = np.random.default_rng(0)
    simplex = {"type": "eq", "fun": lambda w: 1 - w.sum()}
    starts = [np.ones(count) / count, *random.dirichlet(np.ones(count), 4), *np.eye(count) * 0.98 + 0.01]
    ends = [
        minimize(
            dual, w, bounds=[(0, 1)] * count, constraints=simplex, options={"ftol": 1e-15, "maxiter": 500}
        )
        for w in starts
    ]
    return min(end.fun for end in ends)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("size", [2, 50, 2000])
@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("c", [1e-3, 0.1, 0.5, 0.95])
def test_cagrad_reaches_the_optimum_of_scipy(count: int, size: int, spread: float, c: float) -> None:
    g = gradients(count, size, count + size, spread=spread)
    step, mean = weights(CAGrad(c), g) @ g / count, g.mean(0)
    size_of_mean = float(mean @ mean)
    assert torch.linalg.vector_norm(step - mean) <= (1 + 1e-9) * c * mean.norm()
    # No duality gap: what a step within the ball can gain is at most what the dual shows.
    assert worst_gain(g, step) == pytest.approx(optimum(g, c), rel=1e-3, abs=1e-3 * size_of_mean)


def test_cagrad_by_hand() -> None:
    # Gradients (1, 0) and (-1, 1): the mean is (0, 1/2), the ball around it has radius 1/4, and both losses
    # gain alike where y = 2 x: 5 x^2 - 2 x + 3/16 = 0 there, x = 1/4. Times two losses: (1/2, 1).
    g = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    torch.testing.assert_close(weights(CAGrad(0.5), g) @ g, torch.tensor([0.5, 1.0]), rtol=1e-5, atol=1e-5)


def test_cagrad_grows_from_the_sum_as_c_grows() -> None:
    g = gradients(3, 10, 4)
    assert weights(CAGrad(0.0), g).tolist() == [1.0] * 3
    gains = [worst_gain(g, weights(CAGrad(c), g) @ g) for c in (0.0, 5e-324, 0.1, 0.4, 0.9)]
    assert gains[0] == pytest.approx(gains[1], abs=1e-4)
    assert all(first < second for first, second in pairwise(gains[1:]))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_scale_of_the_gradients_does_not_matter(method: SurgeryMethod) -> None:
    # Or a gradient scaler would change them.
    g = gradients(3, 20, 2).float()
    torch.testing.assert_close(weights(method, g), weights(method, 1024 * g), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_losses_that_are_equal_count_as_their_sum(method: SurgeryMethod) -> None:
    g = gradients(1, 5, 3).expand(2, 5)
    expected = 1.0 + method.c if isinstance(method, CAGrad) else 1.0
    torch.testing.assert_close(weights(method, g) @ g, 2 * expected * g[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS[:4], ids=str)
@pytest.mark.parametrize("kind", ["zero", "one zero", "opposite", "huge", "tiny", "not finite", "NaN"])
def test_odd_gradients_give_finite_weights(method: SurgeryMethod, kind: str) -> None:
    g = gradients(3, 5, 6).float()
    if kind == "zero":
        g = 0 * g
    elif kind == "one zero":
        g[1] = 0
    elif kind == "opposite":
        g = torch.stack([g[0], -g[0], 0 * g[0]])
    elif kind in ("huge", "tiny"):
        g = g * {"huge": 1e15, "tiny": 1e-15}[kind]
    elif kind == "not finite":
        g[0, 0] = torch.inf
    else:
        g[0, 0] = torch.nan
    found = weights(method, g)
    if kind in ("not finite", "NaN"):
        assert not torch.isfinite(found @ g).all()  # a scaler must still see it
    else:
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", ["AlignedMTL", "IMTLG", "MGDA"])
def test_methods_of_torchjd(name: str) -> None:
    g = gradients(3, 7, 5)
    theirs = getattr(aggregation, name)()(g)
    torch.testing.assert_close(weights(TorchJD(name), g) @ g, 3 * theirs)


def test_a_solver_that_is_missing_is_named_at_once() -> None:
    try:
        import quadprog  # noqa: F401  # only whether it is there
    except ImportError:
        with pytest.raises(ImportError, match="quadprog"):
            TorchJD("UPGrad")
    assert set(WEIGHTINGS) <= {name.removesuffix("Weighting") for name in aggregation.__all__}


def test_without_torchjd_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"torchjd must be installed: .*lightning_tricks\[surgery\]"
    ):
        TorchJD()
    assert PCGrad() == PCGrad()


def test_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"c must lie in .0.0, 1.0., got 1"):
        CAGrad(1)
    with pytest.raises(ValueError, match="weighting must be one of .*, got 'MGD'; did you mean 'MGDA'?"):
        TorchJD("MGD")
