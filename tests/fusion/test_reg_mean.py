"""RegMean, beside least squares on the inputs themselves."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lightning_tricks as lt
from lightning_tricks.fusion.probe import Probe
from lightning_tricks.fusion.reg_mean import RegMean, gram_matrices, reg_mean

Model = dict[str, Tensor]


class Net(nn.Module):
    """Linear layers: one behind another, one called twice, one tied to an embedding, one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Linear(4, 5), nn.Linear(5, 5)
        self.table, self.tied = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.tied.weight = self.table.weight
        self.never, self.drop = nn.Linear(2, 2), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.twice(self.twice(self.drop(self.first(x).tanh()))))


def call(module: nn.Module, batch: Tensor) -> Tensor:
    return module(batch).square().mean()


def draws(count: int, rows: int = 30, width: int = 4) -> tuple[list[Tensor], list[Model]]:
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(count)]
    models = [
        {
            "w": torch.randn(3, width, generator=generator, dtype=torch.float64),
            "b": torch.randn(3, generator=generator),
        }
        for _ in range(count)
    ]
    return xs, models


def grams_of(xs: list[Tensor]) -> list[Model]:
    return [{"w": x.T @ x / len(x)} for x in xs]


def test_without_scale_it_is_least_squares_on_the_stacked_inputs() -> None:
    xs, models = draws(3)
    outputs = [x @ model["w"].T for x, model in zip(xs, models, strict=True)]
    wanted = np.linalg.lstsq(torch.cat(xs).numpy(), torch.cat(outputs).numpy(), rcond=None)[0].T
    fused = reg_mean(models, grams_of(xs), scale=1.0)
    np.testing.assert_allclose(fused["w"], wanted, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(fused["b"], np.mean([m["b"].numpy() for m in models], 0), rtol=1e-6)


def test_the_scale_is_that_of_the_papers_equation() -> None:
    xs, models = draws(2)
    left = np.zeros((4, 4))
    right = np.zeros((4, 3))
    for x, model in zip(xs, models, strict=True):
        gram = (x.T @ x / len(x)).numpy()
        gram = 0.9 * gram + (1 - 0.9) * np.diag(np.diag(gram))
        left += gram
        right += gram @ model["w"].numpy().T
    np.testing.assert_allclose(reg_mean(models, grams_of(xs))["w"], np.linalg.solve(left, right).T, rtol=1e-9)
    plain = reg_mean(models, [{"w": torch.eye(4) * 3} for _ in models], scale=0.0)["w"]
    torch.testing.assert_close(plain, (models[0]["w"] + models[1]["w"]) / 2)


def test_where_there_are_no_inputs_it_is_the_plain_mean() -> None:
    xs, models = draws(2, rows=2)
    for x in xs:
        x[:, 0] = 0.0  # a dead feature
        x[:, 3] = 2 * x[:, 2]  # and two that are one, so that the sum has rank 2 of 4
    fused = reg_mean(models, grams_of(xs), scale=1.0)["w"]
    mean = (models[0]["w"] + models[1]["w"]) / 2
    assert torch.isfinite(fused).all()
    torch.testing.assert_close(fused[:, 0], mean[:, 0])
    # numpy's shortest least-squares step from the mean
    residuals = [x @ (m["w"] - mean).T for x, m in zip(xs, models, strict=True)]
    step = np.linalg.lstsq(torch.cat(xs).numpy(), torch.cat(residuals).numpy(), rcond=1e-10)[0].T
    np.testing.assert_allclose(fused - mean, step, atol=1e-9)
    for scale in (0.9, 1.0):
        assert torch.equal(reg_mean(models, [{"w": torch.zeros(4, 4)}] * 2, scale=scale)["w"], mean)
    assert torch.equal(reg_mean(models, grams_of(xs))["w"][:, 0], mean[:, 0])


def test_matrices_are_those_of_the_inputs_that_layers_get() -> None:
    torch.manual_seed(0)
    net, batches = Net().train(), [torch.randn(6, 3, 4), torch.randn(2, 3, 4)]
    found = gram_matrices(net, batches, call)
    assert (
        net.training and not net.first._forward_pre_hooks and set(found) == {"first.weight", "twice.weight"}
    )
    net.eval()
    rows = torch.cat(batches).reshape(-1, 4)
    with torch.no_grad():
        once = net.first(rows).tanh()
        twice = torch.cat([once, net.twice(once)])
    np.testing.assert_allclose(found["first.weight"], (rows.T @ rows / 24), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["twice.weight"], (twice.T @ twice / 48), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="batches must reach a linear layer, but none got an input"):
        gram_matrices(nn.Conv1d(4, 2, 1), [torch.zeros(1, 4, 2)], call)


def test_files_and_a_probe_and_a_recipe_give_the_same(tmp_path: Any) -> None:
    torch.manual_seed(0)
    nets, batches = [Net(), Net()], [torch.randn(6, 4), torch.randn(5, 4)]
    models = [net.state_dict() for net in nets]
    grams = [gram_matrices(net, batches, call) for net in nets]
    wanted = reg_mean(models, grams, scale=0.8)
    paths = tuple(str(tmp_path / f"{index}.pt") for index in range(2))
    for path, each in zip(paths, grams, strict=True):
        torch.save(each, path)
    other = Net()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    probe = Probe(other, batches, call)
    for settings in (
        {"method": RegMean(0.8, paths)},
        {"method": RegMean(0.8), "probe": probe},
        {"method": lt.Layerwise({"*.weight": RegMean(0.8), "*": lt.Average()}), "probe": probe},
    ):
        fused = lt.fuse(models, **settings)  # type: ignore[arg-type]
        for name, value in wanted.items():
            torch.testing.assert_close(fused[name], value, rtol=1e-5, atol=1e-6, msg=f"{settings} {name}")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    # Both processes' sums, as if each had the same batches.
    twice = lt.fuse(models, RegMean(0.8), probe=Probe(other, batches, call, add_up=lambda tensor: 2 * tensor))
    torch.testing.assert_close(dict(twice), dict(wanted), rtol=1e-5, atol=1e-6)


def test_laws() -> None:
    xs, models = draws(3)
    grams = grams_of(xs)
    fused = reg_mean(models, grams)["w"]
    assert torch.equal(reg_mean([models[0]] * 3, grams)["w"], models[0]["w"])
    torch.testing.assert_close(reg_mean(models[::-1], grams[::-1])["w"], fused, rtol=1e-12, atol=0.0)
    twice = reg_mean([{name: 2 * value for name, value in model.items()} for model in models], grams)["w"]
    torch.testing.assert_close(twice, 2 * fused, rtol=1e-12, atol=0.0)
    alone = reg_mean(models[:2], [grams[0], {"w": torch.zeros(4, 4)}])["w"]
    torch.testing.assert_close(alone, models[0]["w"], rtol=1e-9, atol=1e-12)
    halves = [{name: value.half() for name, value in model.items()} for model in models]
    wide = [{name: value.float() for name, value in model.items()} for model in halves]
    assert torch.equal(reg_mean(halves, grams)["w"], reg_mean(wide, grams)["w"].half())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.pop(), "grams must be one for each of 2 models, got 1"),
        (lambda g: g[1].clear(), r"grams\[1\] must be of the same tensors as grams\[0\], but 'w' are in one"),
        (lambda g: g[1].update(x=g[1]["w"]), r"grams\[1\] must be of the models' tensors, got 'x'"),
        (lambda g: g[1].update(w=torch.eye(3)), r"w of grams\[1\] must be of shape \(4, 4\) and finite, got"),
        (lambda g: g[1]["w"].fill_(torch.nan), r"w of grams\[1\] must be of shape \(4, 4\) and finite"),
        (
            lambda g: [each.update(b=torch.eye(3)) for each in g],
            r"b of grams\[0\] must be of shape .* \(3,\)",
        ),
    ],
)
def test_matrices_that_do_not_fit_are_refused_by_name(change: Any, message: str) -> None:
    xs, models = draws(2)
    grams = grams_of(xs)
    change(grams)
    with pytest.raises(ValueError, match=message):
        reg_mean(models, grams)


def test_policy(tmp_path: Any) -> None:
    policy = RegMean(0.5, ("a.pt", "b.pt"), 3)
    assert eval(repr(policy)) == pickle.loads(pickle.dumps(policy)) == policy
    assert policy.count == 2 and not policy.entrywise and not policy.needs_probe and RegMean().needs_probe
    models = draws(2)[1]
    with pytest.raises(ValueError, match="scale must lie in"):
        RegMean(1.5)
    with pytest.raises(TypeError, match=r"grams must be a list of files, got \(\)"):
        RegMean(grams=())
    with pytest.raises(ValueError, match="batches must be at least 1, got 0"):
        RegMean(batches=0)
    with pytest.raises(ValueError, match=r"probe or grams must be given for RegMean\(.*, got neither"):
        RegMean().fuse(models)
    with pytest.raises(FileNotFoundError, match="every file of grams must be there, but 'a.pt' is not"):
        policy.fuse(models)
    with pytest.raises(ValueError, match=r"methods must not look at data by themselves, got \(RegMean"):
        lt.OverDepth((RegMean(0.1), RegMean(0.9)))
