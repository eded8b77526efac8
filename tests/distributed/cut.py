"""Units that are cut over processes in every way, run in each: clipped and centralized as whole ones.

python -m tests.distributed.cut
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lightning_tricks.gradients.adaptive import clip_units_
from lightning_tricks.gradients.centralization import centralize_
from lightning_tricks.gradients.units import transposed, units_of
from tests.distributed.cells import whole


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


def main() -> None:
    """Compare with the whole."""
    dist.init_process_group("gloo")
    for clip in (True, False):
        expected, before = work(network(), clip=clip), network()
        changed = [n for n, p in before.named_parameters() if not torch.equal(p.grad, expected[n])]
        assert {"0.weight", "1.weight", "2.weight"} <= set(changed), changed
        for axis in (None, 0, 1, 2):
            found = work(spread(axis), clip=clip)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14, msg=f"{name} {axis}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
