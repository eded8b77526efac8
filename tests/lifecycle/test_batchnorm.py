"""BatchNorm statistics of the training data, against all that a layer sees, laid out side by side."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, IterableDataset

from lightning_tricks.lifecycle import training_pass
from lightning_tricks.lifecycle.batchnorm import Moments, learning_batchnorms, reestimate_batchnorm
from tests.lifecycle.passes import AtEnd
from tests.toys import Compiled, Loader, Toy, assert_equal, scaler_plugin, trainer

BATCHES = list(Loader(4, seed=5))
UNEVEN = [*BATCHES, tuple(part[:3] for part in BATCHES[0])]


def loader(batches: list[Any] = UNEVEN, **options: Any) -> DataLoader:
    return DataLoader(batches, batch_size=None, **options)


class Deep(Toy):
    """Two BatchNorms, the second after dropout and far from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8)
        )
        nn.init.constant_(self.body[3].bias, 1000.0)


def run(module: LightningModule, train: Any = None, **settings: Any) -> AtEnd:
    at_end = AtEnd(reestimate_batchnorm)
    trainer(at_end, max_epochs=1, **settings).fit(module, loader() if train is None else train)
    return at_end


def seen_by_layers(module: nn.Module, batches: list[Any], inputs=lambda batch: batch[0]) -> list[Tensor]:
    """Return everything that reaches each BatchNorm of a copy, shape (entries, channels)."""
    module = copy.deepcopy(module).eval()
    layers = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    seen: list[list[Tensor]] = [[] for _ in layers]
    for layer, entries in zip(layers, seen, strict=True):
        layer.train()
        layer.register_forward_pre_hook(
            lambda _, args, entries=entries: entries.append(args[0].detach().double())
        )
    for batch in batches:
        module.body(inputs(batch))
    return [torch.cat([e.movedim(1, -1).flatten(0, -2) for e in entries]) for entries in seen]


def test_statistics_are_those_of_all_data_side_by_side():
    module = Deep()
    assert run(module).result == 2
    for layer, entries in zip(learning_batchnorms(module), seen_by_layers(module, UNEVEN), strict=True):
        assert entries.shape == (35, 8)
        torch.testing.assert_close(layer.running_mean.double(), entries.mean(0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            layer.running_var.double(), entries.var(0, correction=0), rtol=1e-4, atol=1e-7
        )
        assert layer.num_batches_tracked == 5


def test_beside_torchs_update_bn():
    """Means agree for equal batches; its variances miss what batch means differ by."""
    module = Toy()
    run(module, loader(BATCHES))
    theirs = copy.deepcopy(module.body)
    theirs[3].p = 0.0
    update_bn(BATCHES, theirs)
    ours, theirs = module.body[1], theirs[1]
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    means = torch.stack([module.body[0](x).mean(0) for x, _ in BATCHES]).detach()
    wanted = theirs.running_var * 7 / 8 + means.var(0, correction=0)
    torch.testing.assert_close(ours.running_var, wanted)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 4


def test_after_it_evaluation_normalises_the_training_data():
    module = Toy()
    run(module)
    everything = torch.cat([x for x, _ in UNEVEN])
    out = module.body[1].eval()(module.body[0](everything))
    layer = module.body[1]
    plain = (out - layer.bias) / layer.weight
    torch.testing.assert_close(plain.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.var(0, correction=0), torch.ones(8), atol=1e-3, rtol=0)


class Mapped(LightningModule):
    """A batch that no one but its own ``training_step`` can read, and two-dimensional BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        return self.body(batch["deep"]["image"]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_any_form_of_batch_is_right():
    batches = [{"deep": {"image": torch.randn(n, 1, 6, 6)}, "id": "x"} for n in (4, 4, 1)]
    module = Mapped()
    run(module, loader(batches))
    (entries,) = seen_by_layers(module, batches, lambda batch: batch["deep"]["image"])
    assert entries.shape == (9 * 16, 3)
    torch.testing.assert_close(module.body[1].running_mean.double(), entries.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        module.body[1].running_var.double(), entries.var(0, correction=0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("momentum", [0.1, None, 1.0])
def test_momentum_is_neither_used_nor_changed(momentum):
    module, plain = Deep(), Deep()
    module.body[1].momentum = momentum
    run(module)
    run(plain)
    assert module.body[1].momentum == momentum
    assert_equal(module.body[1].state_dict(), plain.body[1].state_dict())


def test_frozen_layers_are_left_alone():
    class Frozen(Deep):
        def on_train_start(self):
            self.body[1].eval()

    module = Frozen()
    at_end = run(module)
    assert at_end.result == 1
    for name, value in at_end.before["weights"].items():
        if name.startswith("body.1."):
            assert torch.equal(value, at_end.after["weights"][name]), name
    assert not module.body[1].training and module.body[4].training


def test_layers_that_track_nothing_are_left_alone():
    module = Toy()
    module.body[1] = nn.BatchNorm1d(8, track_running_stats=False)
    assert run(module).result == 0


def test_without_batchnorm_there_is_no_pass():
    class Plain(Toy):
        steps = 0

        def __init__(self):
            super().__init__()
            self.body[1] = nn.LayerNorm(8)

        def training_step(self, batch, batch_idx):
            Plain.steps += 1
            return super().training_step(batch, batch_idx)

    assert run(Plain()).result == 0
    assert Plain.steps == 5


def test_a_layer_that_sees_nothing_keeps_its_statistics():
    module = Toy()
    module.unused = nn.BatchNorm1d(2)
    module.unused.running_mean.fill_(7.0)
    assert run(module).result == 2
    assert module.unused.running_mean.tolist() == [7.0, 7.0]
    assert module.unused.num_batches_tracked == 0


def test_a_layer_that_is_used_twice_sees_both():
    class Twice(Toy):
        def loss(self, batch):
            self.body[1](batch[0].repeat(1, 2) + 50.0)
            return super().loss(batch)

    module = Twice()
    run(module, loader(BATCHES))
    first = torch.cat([module.body[0](x) for x, _ in BATCHES])
    second = torch.cat([x.repeat(1, 2) + 50.0 for x, _ in BATCHES])
    torch.testing.assert_close(module.body[1].running_mean, torch.cat([first, second]).detach().mean(0))


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "bf16-mixed"}, {"plugins": "scaler"}, {"precision": "bf16-true"}]
)
def test_every_precision(settings):
    settings = {"plugins": [scaler_plugin()]} if "plugins" in settings else settings
    module = Toy()
    run(module, **settings)
    layer = module.body[1]
    wanted = torch.cat([module.body[0](x.to(layer.running_mean.dtype)) for x, _ in UNEVEN]).detach()
    torch.testing.assert_close(layer.running_mean, wanted.mean(0), rtol=0.02, atol=0.02)
    torch.testing.assert_close(layer.running_var, wanted.var(0, correction=0), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("compiled", ["wrapped", "in place"])
def test_a_compiled_submodule_is_seen_through(compiled):
    module, plain = Compiled() if compiled == "wrapped" else Toy(), Toy()
    if compiled == "in place":
        module.body.compile(backend="aot_eager")
    run(module)
    run(plain)
    ours, theirs = learning_batchnorms(module), learning_batchnorms(plain)
    torch.testing.assert_close(ours[0].running_mean, theirs[0].running_mean)
    torch.testing.assert_close(ours[0].running_var, theirs[0].running_var)
    assert ours[0].num_batches_tracked == 5


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from BATCHES


def test_a_loader_without_length_is_read_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(training_pass, "UNSIZED_BATCHES", 3)
    module = Toy()
    run(module, DataLoader(Endless(), batch_size=None), max_steps=5)
    assert module.body[1].num_batches_tracked == 3


@pytest.mark.parametrize("data", [UNEVEN, Endless()])
def test_limits_of_the_trainer_hold(data):
    module = Toy()
    run(module, DataLoader(data, batch_size=None), limit_train_batches=2)
    assert module.body[1].num_batches_tracked == 2


def test_moments_of_merged_batches():
    batches = [torch.randn(n, 3, 5) * 0.01 + 1e4 for n in (4, 1, 0, 7)]
    moments = Moments(torch.zeros(3))
    for batch in batches:
        moments.add(batch)
    entries = torch.cat(batches).double().movedim(1, -1).flatten(0, -2)
    assert moments.count == len(entries) == 60
    torch.testing.assert_close(moments.mean.double(), entries.mean(0), rtol=1e-6, atol=0)
    # A difference of sums of squares would leave nothing of it in single precision.
    torch.testing.assert_close(
        (moments.squares / 60).double(), entries.var(0, correction=0), rtol=0.05, atol=0
    )


def test_moments_of_half_precision_are_kept_in_single():
    moments = Moments(torch.zeros(1, dtype=torch.float16))
    moments.add(torch.full((4, 1), 60000.0, dtype=torch.float16))
    assert moments.mean.dtype == torch.float32
    assert moments.mean.item() == pytest.approx(60000, rel=1e-3)


class Halves(Callback):
    """Feeds each of two processes its own batches, and compares with all of them."""

    def on_train_end(self, trainer, pl_module):
        reestimate_batchnorm(trainer, pl_module)
        layer = pl_module.body[1]
        everything = torch.cat([pl_module.body[0](x) for x, _ in BATCHES]).detach()
        torch.testing.assert_close(layer.running_mean, everything.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var, everything.var(0, correction=0), rtol=1e-5, atol=1e-6)


class Sharded(Toy):
    def train_dataloader(self):
        return loader(BATCHES[self.global_rank :: 2])


def test_two_processes_agree_on_the_statistics_of_all_data():
    module = Sharded()
    settings = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    trainer(Halves(), max_epochs=1, **settings).fit(module)
