"""LSUV against the paper's algorithm, done slowly, and on a net of 50 layers where Kaiming drifts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_tricks import LSUV, WeightInit
from tests.lifecycle.passes import visible
from tests.toys import Loader, StopError, Toy, assert_equal, trainer, weights

BATCHES = list(Loader(4))


class Net(Toy):
    """Trains any network on four numbers, and notes its weights when training begins."""

    def __init__(self, body: nn.Module, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = body
        self.head = nn.Linear(width, 3)

    def on_train_start(self) -> None:
        self.begun = weights(self)


def start(module: Toy, *techniques: Any, data: Any = None, **settings: Any) -> Toy:
    """Train one step from what ``techniques`` make of ``module``."""
    loader = DataLoader(BATCHES, batch_size=None) if data is None else data
    runner = trainer(*(techniques or [LSUV(seed=1)]), **{"max_steps": 1, **settings})
    runner.fit(module, loader)
    return module


def outputs(module: Toy, inputs: Tensor) -> dict[str, Tensor]:
    """Return what comes out of each layer with the weights that training began with."""
    found: dict[str, Tensor] = {}
    twin = copy.deepcopy(module)
    twin.load_state_dict(module.begun)
    twin.eval()
    for name, layer in twin.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train()
        layer.register_forward_hook(lambda _, __, out, name=name: found.setdefault(name, copy.deepcopy(out)))
    with torch.no_grad():
        twin.head(twin.body(inputs))
    return found


def linears(net: nn.Module) -> list[nn.Linear]:
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)]


def slow_twin(net: nn.Sequential, batch: Tensor, *, tolerance: float, most: int) -> list[int]:
    """Algorithm 1 of the paper from the orthogonal weights of ``net``; return how often each was scaled."""
    passes = []
    for layer in linears(net):
        count = 0
        while True:
            blob = batch
            for part in net:
                blob = part(blob)
                if part is layer:
                    break
            if abs(blob.var(correction=0) - 1.0) < tolerance or count == most:
                break
            layer.weight /= blob.var(correction=0).sqrt()
            count += 1
        passes.append(count)
    return passes


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, lambda: nn.ReLU(inplace=True)])
@torch.no_grad()
def test_it_is_the_papers_algorithm(activation) -> None:
    parts = [part for _ in range(6) for part in (nn.Linear(8, 8), activation())]
    with torch.enable_grad():
        module = start(Net(nn.Sequential(nn.Linear(4, 8), activation(), *parts)))
    ours = nn.Sequential(*copy.deepcopy(module).body, copy.deepcopy(module).head)
    state = {k.replace("body.", "").replace("head", "14"): v for k, v in module.begun.items()}
    ours.load_state_dict(state)
    slow = copy.deepcopy(ours)
    for layer in linears(slow):
        layer.weight /= torch.linalg.matrix_norm(layer.weight, 2)  # orthogonal again
        assert not layer.bias.any()
    passes = slow_twin(slow, BATCHES[0][0], tolerance=0.1, most=10)
    assert set(passes) <= {0, 1}
    for fast, wanted in zip(linears(ours), linears(slow), strict=True):
        torch.testing.assert_close(fast.weight, wanted.weight, rtol=1e-5, atol=1e-6)


class Deep(Net):
    def __init__(self, activation: type[nn.Module], width: int = 64) -> None:
        layers = [part for _ in range(48) for part in (nn.Linear(width, width), activation())]
        super().__init__(nn.Sequential(nn.Linear(4, width), activation(), *layers), width)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU])
def test_unit_variance_behind_fifty_layers_where_kaiming_drifts(activation) -> None:
    stds = {}
    for technique in (WeightInit(seed=1), LSUV(seed=1)):
        module = start(Deep(activation), technique)
        found = outputs(module, BATCHES[0][0])
        stds[type(technique).__name__] = [
            out.std(correction=0).item() for name, out in found.items() if name in names(module)
        ]
        assert len(stds[type(technique).__name__]) == 50
    assert all(abs(std**2 - 1) < 0.1 for std in stds["LSUV"])
    assert abs(stds["WeightInit"][-1] ** 2 - 1) > 0.3


def names(module: nn.Module) -> set[str]:
    return {name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


class Mixed(nn.Module):
    """Layers of many kinds, one behind the other; some are not called, or twice."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv1d(4, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm1d(8)
        self.transposed = nn.ConvTranspose1d(8, 8, 4, stride=2, groups=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.twice = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.own = Own(8, 8)
        self.shared = nn.Linear(8, 8)
        self.shares = nn.Linear(8, 8)
        self.shares.weight = self.shared.weight
        self.dropped = nn.Dropout(0.9)
        self.dead = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transposed(self.norm(self.grouped(x[..., None].expand(-1, -1, 5)))).mT
        x = self.recurrent(self.attention(x, x, x)[0])[0]
        x = self.own(self.shares(self.shared(self.twice(self.twice(x)))))
        return self.dropped(x).mean(1) + self.dead(torch.zeros_like(x)).mean(1)


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.filterwarnings("ignore:LSUV. variances should be within 0.1 of 1 .* 'body.dead.weight'")
def test_all_kinds_of_layers(capsys) -> None:
    module = Net(Mixed())
    before = weights(module)
    start(module)
    found, table = outputs(module, BATCHES[0][0]), capsys.readouterr().out
    for name in ("body.grouped", "body.transposed", "head"):
        assert found[name].var(correction=0).item() == pytest.approx(1.0, abs=0.1)
    assert found["body.attention"][0].var(correction=0).item() == pytest.approx(1.0, abs=0.1)
    after = module.begun
    for block in after["body.attention.in_proj_weight"].split(8):
        torch.testing.assert_close(block @ block.T, torch.eye(8), rtol=0, atol=1e-5)
    for name, why in {
        "recurrent": "of GRU, its activations bound what comes out",
        "twice": "called 2 times in 1 batch",
        "unused": "called 0 times in 1 batch",
        "own": "of Own, its forward is not torch's",
        "shared": "it shares a weight",
        "norm": "normalisation starts as torch makes it",
    }.items():
        held = {key for key in before if key.startswith(f"body.{name}.")}
        assert_equal({k: before[k] for k in held}, {k: after[k] for k in held})
        assert any(f"'body.{name}." in line and why in line for line in table.splitlines()), name
    torch.testing.assert_close(
        after["body.dead.weight"] @ after["body.dead.weight"].T, torch.eye(8), rtol=0, atol=1e-5
    )


def test_several_batches_count_together() -> None:
    module = start(Net(nn.Linear(4, 8)), LSUV(batches=3, tolerance=0.01, seed=1))
    inputs = torch.cat([x for x, _ in BATCHES[:3]])
    out = inputs @ module.begun["body.weight"].T
    assert out.var(correction=0).item() == pytest.approx(1.0, abs=0.01)
    assert abs((BATCHES[0][0] @ module.begun["body.weight"].T).var(correction=0).item() - 1.0) > 0.01


class Shuffled(Net):
    """Notes what it trains on, and all else that a look at the data could disturb."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)))
        self.seen: list[Tensor] = []

    def on_train_start(self) -> None:
        super().on_train_start()
        shown = visible(self.trainer, self)
        self.shown = {k: v for k, v in shown.items() if k not in {"weights", "module", "callbacks"}}
        self.statistics = {k: v for k, v in weights(self).items() if "running" in k or "tracked" in k}

    def training_step(self, batch, batch_idx):
        if self.training:
            self.seen.append(batch[0].clone())
        self.log("loss", batch[0].sum(), prog_bar=True)
        return cross_entropy(self.head(self.body(batch[0])), batch[1])


@pytest.mark.parametrize("options", [{}, {"num_workers": 1, "persistent_workers": True}])
def test_nothing_but_the_weights_is_disturbed(options) -> None:
    items = [(x, y) for batch in BATCHES for x, y in zip(*batch, strict=True)]

    def run(*techniques: LSUV) -> Shuffled:
        torch.manual_seed(3)
        module, loader = Shuffled(), DataLoader(items, batch_size=8, shuffle=True, **options)
        trainer(*techniques, max_epochs=2).fit(module, loader)
        return module

    plain, ours = run(), run(LSUV(seed=1, batches=2))
    assert not torch.equal(plain.begun["head.weight"], ours.begun["head.weight"])
    assert_equal(plain.seen, ours.seen)
    assert_equal(plain.shown, ours.shown)
    assert_equal(plain.statistics, ours.statistics)
    assert not any(part._forward_hooks for part in ours.modules())


def test_an_error_in_the_step_leaves_all_as_it_was() -> None:
    class Breaks(Net):
        def training_step(self, batch, batch_idx):
            raise StopError

    module = Breaks(nn.Linear(4, 8))
    before = weights(module)
    with pytest.raises(StopError):
        start(module)
    assert_equal(before, weights(module))
    assert not any(part._forward_hooks for part in module.modules())


class Apart(Net):
    """Two processes with other data and other random numbers, which must end at one scale."""

    def setup(self, stage: str) -> None:
        torch.manual_seed(self.global_rank)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(BATCHES[self.global_rank :: 2], batch_size=None)

    def on_train_start(self) -> None:
        super().on_train_start()
        assert_equal(self.trainer.strategy.broadcast(self.begun), self.begun)
        both = torch.cat([BATCHES[0][0], BATCHES[1][0]]) @ self.begun["body.weight"].T
        torch.testing.assert_close(both.var(correction=0), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_processes_measure_together() -> None:
    settings = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    trainer(LSUV(tolerance=1e-6), max_epochs=1, **settings).fit(Apart(nn.Linear(4, 8)))
