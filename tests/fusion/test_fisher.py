from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lightning_tricks as lt
from lightning_tricks.core.fisher import fisher_information
from lightning_tricks.fusion.fisher import FisherWeighted, fisher_weighted
from lightning_tricks.fusion.probe import Probe

Models = list[dict[str, Tensor]]


def draws(count: int) -> tuple[Models, Models]:
    generator = torch.Generator().manual_seed(0)
    models = [{"w": torch.randn(50, 700, generator=generator), "b": torch.randn(3)} for _ in range(count)]
    fishers = [{"w": torch.rand(50, 700, generator=generator) ** 4 * 1e-8} for _ in range(count)]
    return models, fishers


def test_it_is_numpys_average_entry_by_entry():
    models, fishers = draws(3)
    shares = np.array([f["w"].double().numpy() for f in fishers]) * np.array([0.5, 1.0, 3.0])[:, None, None]
    wanted = np.average([model["w"].double().numpy() for model in models], axis=0, weights=shares)
    fused = fisher_weighted(models, fishers, weights=[0.5, 1.0, 3.0])
    np.testing.assert_allclose(fused["w"], wanted, rtol=1e-6)
    biases = [model["b"].double().numpy() for model in models]
    np.testing.assert_allclose(fused["b"], np.average(biases, axis=0, weights=[0.5, 1.0, 3.0]), rtol=1e-6)


def test_where_nobody_is_sure_it_is_the_plain_mean():
    models = [{"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([3.0, 3.0])}]
    fishers = [{"w": torch.tensor([0.0, 1e-38])}, {"w": torch.tensor([0.0, 0.0])}]
    assert fisher_weighted(models, fishers)["w"].tolist() == [2.0, 1.0]


def test_the_policy_reads_files(tmp_path):
    models, fishers = draws(2)
    for index, fisher in enumerate(fishers):
        torch.save(fisher, tmp_path / f"{index}.pt")
    method = FisherWeighted(tuple(str(tmp_path / f"{index}.pt") for index in range(2)), weights=(1.0, 2.0))
    assert method.count == 2 and not method.entrywise
    wanted = fisher_weighted(models, fishers, weights=[1.0, 2.0])
    assert all(torch.equal(value, wanted[name]) for name, value in method.fuse(models).items())
    compiled = [{f"_orig_mod.{name}": value for name, value in model.items()} for model in models]
    assert torch.equal(method.fuse(compiled)["_orig_mod.w"], wanted["w"])
    recipe = lt.Layerwise({"w": method, "*": lt.Average()})
    assert torch.equal(recipe.fuse(models)["w"], wanted["w"])


def test_models_fused_with_themselves_in_other_orders_and_types():
    models, fishers = draws(3)
    again = fisher_weighted(models[::-1], fishers[::-1])["w"]
    torch.testing.assert_close(fisher_weighted(models, fishers)["w"], again, rtol=1e-7, atol=0)
    assert torch.equal(fisher_weighted(models[:1] * 3, fishers)["w"], models[0]["w"])
    assert torch.equal(fisher_weighted(models, fishers, weights=[0.0, 1.0, 0.0])["w"], models[1]["w"])
    halves = [{name: value.half() for name, value in model.items()} for model in models]
    wide = [{name: value.float() for name, value in model.items()} for model in halves]
    assert torch.equal(fisher_weighted(halves, fishers)["w"], fisher_weighted(wide, fishers)["w"].half())
    both = [{"w": torch.complex(model["w"], -model["w"])} for model in models]
    fused = fisher_weighted(both, fishers)["w"]
    assert torch.equal(fused.real, -fused.imag) and torch.equal(
        fused.real, fisher_weighted(models, fishers)["w"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f.clear(),
            r"fishers\[1\] must be of the same tensors as fishers\[0\], but 'w' are in",
        ),
        (lambda f: f.update(x=f["w"]), r"fishers\[1\] must be of the models' tensors, got 'x'"),
        (lambda f: f.update(b=torch.ones(3)), r"of the same tensors as fishers\[0\], but 'b' are in one"),
        (lambda f: f.update(w=f["w"][:2]), r"w of fishers\[1\] must be of shape \(50, 700\), .* \(2, 700\)"),
        (lambda f: f["w"][0].fill_(-1.0), r"finite and not below 0, got shape .* and -1.0 to"),
        (lambda f: f["w"][0].fill_(torch.nan), "finite and not below 0, got shape .* and nan to nan"),
    ],
)
def test_information_that_does_not_fit_is_refused_by_name(change, message):
    models, fishers = draws(2)
    change(fishers[1])
    with pytest.raises(ValueError, match=message):
        fisher_weighted(models, fishers)


def test_no_information_at_all_is_refused():
    models, _ = draws(2)
    with pytest.raises(ValueError, match=r"fishers\[0\] must hold at least one tensor, got none"):
        fisher_weighted(models, [{}, {}])


def test_counts_must_agree():
    models, fishers = draws(2)
    for settings in ({"fishers": fishers[:1]}, {"fishers": fishers, "weights": [1.0]}):
        with pytest.raises(ValueError, match="fishers and weights must be one for each of 2 models, got"):
            fisher_weighted(models, **settings)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "every file of fishers must be there, but .*a.pt' is not"),
        ([1, 2], ValueError, "every file of fishers must hold tensors by name, got .*a.pt'"),
        ({"w": 1.0}, ValueError, "every file of fishers must hold tensors by name"),
        (print, ValueError, "every file of fishers must hold tensors by name, .* plain values"),
    ],
)
def test_files_that_hold_something_else_are_refused(content, error, message, tmp_path):
    path = tmp_path / "a.pt"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(error, match=message):
        FisherWeighted((str(path),)).fuse(draws(1)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fishers": ()}, r"fishers must be a list of files, got \(\)"),
        ({"fishers": "a.pt"}, "fishers must be a list of files, got 'a.pt'"),
        ({"fishers": (1,)}, "every entry of fishers must be text, got 1"),
        ({"fishers": ("a", "b"), "weights": (1.0,)}, r"weights must be one number for each of fishers, got"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(TypeError, match=message):
        FisherWeighted(**settings)


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(module(batch[0]), batch[1])


def test_without_files_the_information_comes_from_a_probe(tmp_path):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2)]
    batches = [(torch.randn(n, 3), torch.randint(0, 2, (n,))) for n in (5, 2)]
    models = [{f"_orig_mod.{name}": value for name, value in net.state_dict().items()} for net in nets]
    wanted = fisher_weighted(
        [net.state_dict() for net in nets], [fisher_information(net, batches, loss) for net in nets]
    )
    probe = Probe(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), batches, loss)
    both = Probe(probe.module, batches, loss, add_up=lambda tensor: 2 * tensor)
    for each in (probe, both):
        fused = lt.fuse(models, FisherWeighted(), probe=each)
        for name, value in wanted.items():
            torch.testing.assert_close(fused[f"_orig_mod.{name}"], value, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(fused["_orig_mod.0.weight"], lt.fuse(models)["_orig_mod.0.weight"])
    with pytest.raises(ValueError, match="batches of probe must hold at least one sample, got none"):
        lt.fuse(models, FisherWeighted(), probe=Probe(probe.module, [], loss))
    with pytest.raises(ValueError, match=r"models must be 3 for FisherWeighted\(fishers=None, weights="):
        lt.fuse(models, FisherWeighted(weights=(1.0, 1.0, 1.0)), probe=probe)
    with pytest.raises(ValueError, match="probe must be given for FisherWeighted"):
        lt.fuse(models, FisherWeighted(), tmp_path / "fused.ckpt")
    assert not [*tmp_path.iterdir()]
