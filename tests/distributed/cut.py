"""Units that are cut over processes in every way, run in each: clipped and centralized as whole ones.

And noise: the same on copies of a weight, another one on each part of it.

python -m tests.distributed.cut FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lightning_tricks import GradientNoise
from lightning_tricks.core.tensors import local
from lightning_tricks.gradients.adaptive import clip_units_
from lightning_tricks.gradients.centralization import centralize_
from lightning_tricks.gradients.units import transposed, units_of
from tests.distributed.cells import fit, whole
from tests.distributed.worlds import WORLDS


def network() -> nn.Module:
    """Return layers of odd sizes, with gradients of many sizes; the same each time."""
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(5, 3), nn.ConvTranspose1d(3, 4, 3), nn.Conv1d(1, 3, 2), nn.PReLU()])
    for parameter in layers.double().parameters():
        sizes = torch.logspace(-4, 1, parameter.numel()).view(parameter.shape)
        parameter.grad = sizes * torch.randn_like(parameter)
    return layers


def work(layers: nn.Module, *, clip: bool) -> dict[str, Tensor]:
    """Return the whole gradients after one of both techniques."""
    optimizer, members = torch.optim.SGD(layers.parameters(), lr=0.1), set(layers.parameters())
    for weights, grads, axes, groups in units_of(optimizer, members, transposed(layers) if clip else {}):
        if clip:
            clip_units_(grads, weights, axes, clip=0.1, eps=1e-3, groups=groups)
        else:
            centralize_(grads, groups)
    return {name: whole(parameter.grad) for name, parameter in layers.named_parameters()}


def spread(axis: int | None) -> nn.Module:
    """Return the same layers, sharded along an axis, or along none but with copies."""
    layers, mesh = network(), init_device_mesh("cpu", (2,))
    for layer in layers:
        for name, parameter in list(layer.named_parameters()):
            own = Replicate() if axis is None else Shard(min(axis, parameter.ndim - 1))
            cut = nn.Parameter(distribute_tensor(parameter.detach(), mesh, [own]))
            cut.grad = distribute_tensor(parameter.grad, mesh, [own])
            setattr(layer, name, cut)
    return layers


class Added(Callback):
    """Notes what this process gets of the noise for one weight; to be listed before and after it."""

    def __init__(self) -> None:
        self.before: Tensor | None = None
        self.noise: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
        gradient = local(pl_module.body[0].weight.grad).clone()
        if self.before is not None:
            self.noise.append(gradient - self.before)
        self.before = gradient if self.before is None else None


def noise_is_equal(world: str, folder: Path) -> bool:
    """Return whether both processes add the same noise to what they hold."""
    added = Added()
    fit(WORLDS[world], folder / world, added, GradientNoise(variance=1e6, decay=0.0), added)
    own = torch.stack(added.noise)
    assert 900 < own.std() < 1100
    both = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(both, own)
    return torch.allclose(*both, rtol=0, atol=1e-6)


def main(folder: Path) -> None:
    """Compare with the whole."""
    assert noise_is_equal("DDP", folder)
    assert not noise_is_equal("FSDP2", folder)
    for clip in (True, False):
        expected, before = work(network(), clip=clip), network()
        changed = [n for n, p in before.named_parameters() if not torch.equal(p.grad, expected[n])]
        assert {"0.weight", "1.weight", "2.weight"} <= set(changed), changed
        for axis in (None, 0, 1, 2):
            found = work(spread(axis), clip=clip)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14, msg=f"{name} {axis}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
