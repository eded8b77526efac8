"""Coefficients by the gradient of a loss, beside optima that are known exactly."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

import lightning_tricks as lt
from lightning_tricks.core.functional import in_evaluation
from lightning_tricks.fusion.learned_soup import LearnedSoup, learned_coefficients, learned_soup
from lightning_tricks.fusion.mixture import coefficients
from lightning_tricks.fusion.probe import Probe

Model = dict[str, Tensor]


class Tied(nn.Module):
    """A buffer, a counter that counts in forward, two layers and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 3)
        self.head.weight = self.body.weight
        self.register_buffer("shift", torch.zeros(3))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.body(x) + self.shift)


def states(count: int, module: nn.Module | None = None) -> list[Model]:
    """Return state dicts of ``module``, tied as it is."""
    module = module or Tied()
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        drawn: dict[int, Tensor] = {}
        state = {}
        for name, value in module.state_dict().items():
            new = torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
            state[name] = drawn.setdefault(value.data_ptr(), new)
        found.append(state)
    return found


def far(target: Model) -> Any:
    """Return half the squared distance of the parameters from ``target``."""

    def loss(module: nn.Module, batch: Any) -> Tensor:
        return sum((p - target[n]).square().sum() / 2 for n, p in module.named_parameters())

    return loss


def flat(models: list[Model], names: list[str]) -> np.ndarray:
    return np.stack([torch.cat([m[n].flatten() for n in names]).double().numpy() for m in models], 1)


NAMES = ["body.weight", "body.bias", "head.bias"]


@pytest.mark.parametrize("per", ["model", "layer", "tensor"])
def test_affine_coefficients_are_the_exact_optimum_of_a_quadratic(per) -> None:
    models, (target,) = states(3), states(4)[3:]
    found = learned_coefficients(models, Probe(Tied(), [0], far(target)), per=per, sign="affine", steps=60)
    groups = {
        "model": {"": NAMES},
        "layer": {"body": NAMES[:2], "head": NAMES[2:]},
        "tensor": {name: [name] for name in NAMES},
    }[per]
    for group, names in groups.items():
        basis = flat(models, names)
        # With the last coefficient what is left to 1, by least squares.
        shares = np.linalg.lstsq(
            basis[:, :-1] - basis[:, -1:], flat([target], names)[:, 0] - basis[:, -1], rcond=None
        )[0]
        np.testing.assert_allclose(found[group], [*shares, 1 - shares.sum()], atol=1e-3)


def test_convex_coefficients_are_the_nearest_point_of_the_segment() -> None:
    models = states(2)
    for share, wanted in ((0.3, 0.3), (1.7, 1.0)):
        target = {n: models[1][n] + share * (models[0][n] - models[1][n]) for n in NAMES}
        (found,) = learned_coefficients(models, Probe(Tied(), [0], far(target)), steps=40).values()
        assert found[0] == pytest.approx(wanted, abs=1e-3) and sum(found) == pytest.approx(1.0)


def test_it_mixes_what_it_found_keeps_ties_and_leaves_everything_as_it_was() -> None:
    module, models = Tied().train(), states(3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    kept = [{name: value.clone() for name, value in model.items()} for model in models]
    x = [torch.randn(4, 3), torch.randn(2, 3)]
    probe = Probe(module, x, lambda module, x: (module(x) - x).square().mean())
    found = learned_coefficients(models, probe, per="layer")
    assert set(found) == {"body", "head", ""}  # the last one has the buffer
    fused = learned_soup(models, probe, per="layer")
    assert fused["head.weight"] is fused["body.weight"]
    wanted = sum(share * model["head.bias"] for share, model in zip(found["head"], models, strict=True))
    torch.testing.assert_close(fused["head.bias"], wanted)
    assert fused["calls"] == models[-1]["calls"] == 0
    assert module.training and all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    assert all(torch.equal(m[n], k[n]) for m, k in zip(models, kept, strict=True) for n in m)

    def held_out(model: Model) -> float:
        module.load_state_dict(model)
        return float((module(torch.cat(x)) - torch.cat(x)).square().mean().detach())

    average = lt.fuse(models)
    assert held_out(fused) < held_out(average)
    # Samples count alike, whatever their batches.
    whole = Probe(module, [torch.cat(x)], probe.loss)
    again = learned_coefficients(models, whole, per="layer")
    np.testing.assert_allclose(np.array([*again.values()]), np.array([*found.values()]), atol=1e-3)


def test_models_that_are_one_come_back_and_two_processes_agree_with_one() -> None:
    models = states(2)
    probe = Probe(Tied(), [torch.randn(4, 3)], lambda module, x: module(x).square().mean())
    alike = [models[0], {**models[0]}]
    assert all(torch.equal(v, models[0][n]) for n, v in learned_soup(alike, probe).items())
    twice = Probe(probe.module, probe.batches, probe.loss, add_up=lambda tensor: 2 * tensor)
    one, other = (learned_coefficients(models, each)[""] for each in (probe, twice))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_statistics_of_batchnorm_are_mixed_and_the_gradient_is_that_of_the_loss() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
    models = states(2, net)
    for model in models:
        for name in ("1.running_var", "2.running_var"):
            model[name] = model[name].abs() + 0.1
    x = torch.randn(20, 3)
    probe = Probe(net, [x], lambda module, x: (module(x) - 1).square().mean())

    def loss(share: float) -> float:
        net.load_state_dict(lt.fuse(models, lt.Interpolate(float(share))))
        with torch.no_grad(), in_evaluation(net):
            return float((net(x) - 1).square().mean())

    (found,) = learned_coefficients(models, probe).values()
    nearest = minimize_scalar(loss, bounds=(0.0, 1.0), method="bounded").x
    assert 0.01 < nearest < 0.99 and found[0] == pytest.approx(nearest, abs=2e-3)
    assert "forward" not in vars(net[1])


def test_a_mask_of_infinities_stays_and_a_model_alone_comes_back() -> None:
    models = [{**model, "shift": torch.tensor([0.0, -torch.inf, 0.0])} for model in states(2)]
    probe = Probe(Tied(), [torch.ones(1, 3)], far(models[0]))
    fused = learned_soup(models, probe, sign="affine")
    torch.testing.assert_close(fused, models[0], rtol=0, atol=1e-3)
    assert all(torch.equal(v, models[0][n]) for n, v in learned_soup(models[:1], probe).items())


def test_narrow_models_and_a_narrow_module_are_mixed_wide() -> None:
    models = [{n: v.bfloat16() if v.is_floating_point() else v for n, v in m.items()} for m in states(2)]
    target = {n: 0.25 * models[0][n].float() + 0.75 * models[1][n].float() for n in NAMES}
    (found,) = learned_coefficients(models, Probe(Tied(), [0], far(target)), steps=40).values()
    assert found[0] == pytest.approx(0.25, abs=1e-3)
    fused = lt.fuse(models, LearnedSoup(), probe=Probe(Tied().bfloat16(), [0], far(target)))
    assert fused["body.bias"].dtype == torch.bfloat16


def test_free_numbers_at_0_are_the_plain_average_and_all_make_1() -> None:
    for sign in ("convex", "affine"):
        torch.testing.assert_close(coefficients(torch.zeros(2, 4), sign), torch.full((2, 4), 0.25))
        torch.testing.assert_close(coefficients(torch.randn(5, 3), sign).sum(-1), torch.ones(5))
    torch.testing.assert_close(coefficients(torch.tensor([0.0, 1.0, 0.0]), "affine"), torch.eye(3)[1])


def test_what_cannot_be_learned_is_refused() -> None:
    models, module = states(2), Tied()

    def probe(**settings: Any) -> Probe:
        return Probe(**{"module": module, "batches": [torch.ones(1, 3)], "loss": far(models[0]), **settings})

    with pytest.raises(ValueError, match=r"probe must be given for LearnedSoup\(.*, which looks at data"):
        lt.fuse(models, LearnedSoup())
    with pytest.raises(ValueError, match="probe must be given for a learned soup, got None"):
        LearnedSoup().fuse(models)
    with pytest.raises(TypeError, match="probe must be a Probe, got 3"):
        lt.fuse(models, LearnedSoup(), probe=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Linear has no 'shift', 'calls', 'body.weight', "):
        learned_soup(models, probe(module=nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="must have the parameters .*, Tied, but 'body.bias' are in none"):
        learned_soup([{n: v for n, v in m.items() if n != "body.bias"} for m in models], probe())
    with pytest.raises(ValueError, match=r"head.bias must have one shape .* got \(2,\) and \(3,\)"):
        learned_soup([{**m, "head.bias": torch.zeros(2)} for m in models], probe())
    with pytest.raises(ValueError, match="batches of probe must hold at least one, got none"):
        learned_soup(models, probe(batches=[]))
    with pytest.raises(ValueError, match="loss of the plain average must be a finite number, got nan"):
        learned_soup(models, probe(loss=lambda module, x: module(x).sum() * torch.nan))
    with pytest.raises(TypeError, match=r"loss must return a tensor of shape \(\), got 1.0"):
        lt.fuse(models, LearnedSoup(), probe=probe(loss=lambda module, batch: 1.0))
    with pytest.raises(ValueError, match="loss must depend on the module's parameters"):
        lt.fuse(models, LearnedSoup(), probe=probe(loss=lambda module, batch: torch.ones(())))
    with pytest.raises(ValueError, match="body.bias must be finite in every model, but is not in model 1"):
        learned_soup([models[0], {**models[1], "body.bias": torch.full((3,), torch.inf)}], probe())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"module": 3}, "module must be a module, got 3"),
        ({"batches": iter([1])}, "batches must be a list or a loader, which can be gone through several"),
        ({"batches": 3}, "batches must be a list or a loader"),
        ({"loss": 3}, "loss must be a function of a module and a batch, got 3"),
    ],
)
def test_a_wrong_probe_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Probe(**{"module": nn.Linear(1, 1), "batches": [1], "loss": far({}), **settings})


def test_policy() -> None:
    policy = LearnedSoup(per="layer", sign="affine", steps=5, batches=3)
    assert eval(repr(policy)) == pickle.loads(pickle.dumps(policy)) == policy
    assert not policy.entrywise and policy.needs_probe and policy.held_out
    for wrong in ({"per": "block"}, {"sign": "free"}, {"steps": 0}, {"batches": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            LearnedSoup(**wrong)  # type: ignore[arg-type]
