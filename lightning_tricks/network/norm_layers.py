"""Which normalisation layers are replaced by which, and what they hand on.

    group, layer, instance    a GroupNorm with ``groups`` groups, one, or as many as there are channels
    frozen_batch              FrozenBatchNorm
    sync_batch                torch.nn.SyncBatchNorm
    rms                       a LayerNorm by an RMSNorm

Layers hand on their parameters and buffers themselves, not copies: device, type, ``requires_grad``, ties and
optimizers that hold them stay right.

Reference: Wu and He, "Group Normalization", 2018, https://arxiv.org/abs/1803.08494, section 3: layer
normalisation is one group, instance normalisation a group per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from lightning_tricks.network.frozen_batchnorm import FrozenBatchNorm

__all__ = ["TARGETS", "Replaced", "is_norm", "is_replaced", "replacement_of"]

TARGETS = ("group", "layer", "instance", "rms", "frozen_batch", "sync_batch")

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Replaced(NamedTuple):
    """What became of a layer.

    Attributes:
        name: Its first name in the module.
        before: Its former type.
        after: What stands there now.
        carried: The names of the tensors that it handed on.
        dropped: Those of the others.
    """

    name: str
    before: str
    after: str
    carried: tuple[str, ...]
    dropped: tuple[str, ...]


class _PerChannel(nn.GroupNorm):
    """GroupNorm of one channel a group, which torch gives nothing but the bias for one value a channel."""

    def __init__(self, path: str, channels: int, eps: float, affine: bool) -> None:
        """Make the layer that is called ``path``, without values."""
        super().__init__(channels, channels, eps, affine, device="meta")
        self.path = path

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input`` of shape (N, C, ...).

        Raises:
            ValueError: If there is one value per sample and channel.
        """
        if input.shape[1:].numel() == self.num_channels:
            raise ValueError(
                f"input of {self.path!r} must have several values per group, got {tuple(input.shape)} with a "
                "group for each channel, each value minus itself: replace with to='layer', with fewer "
                "groups, or leave the layer out of params"
            )
        return super().forward(input)


def is_norm(layer: nn.Module, *, to: str) -> bool:
    """Return whether ``layer`` is of the kind that target ``to`` takes the place of."""
    return isinstance(layer, nn.LayerNorm if to == "rms" else _BatchNorm)


def is_replaced(layer: nn.Module, *, to: str, groups: int) -> bool:
    """Return whether ``layer`` is already as target ``to`` would have it."""
    if isinstance(layer, nn.GroupNorm):
        wanted = {"group": groups, "layer": 1, "instance": layer.num_channels}
        return layer.num_groups == wanted.get(to)
    kinds = {"rms": nn.RMSNorm, "frozen_batch": FrozenBatchNorm, "sync_batch": nn.SyncBatchNorm}
    return to in kinds and isinstance(layer, kinds[to])


def replacement_of(layer: nn.Module, *, name: str, to: str, groups: int) -> nn.Module:
    """Return what takes the place of ``layer``, and hands on its tensors and its mode.

    Args:
        layer: What is replaced.
        name: What it is called, for errors.
        to: What by.
        groups: The groups of a GroupNorm, if ``to`` is ``"group"``.

    Raises:
        ValueError: If the layer does more than torch's own, or cannot become what is wanted; says why.
    """
    _check(layer, name)
    after = _MAKERS[to](layer, name, groups)
    for theirs, own in ((layer._parameters, after._parameters), (layer._buffers, after._buffers)):
        own.update({key: theirs[key] for key in own if key in theirs})  # type: ignore[misc]  # of one kind
    after.training = layer.training
    return after


def _check(layer: nn.Module, name: str) -> None:
    kind = type(layer).__name__
    if isinstance(layer, _LazyNormBase):
        raise ValueError(f"params must match initialised layers, got the lazy {name!r}: run one batch first")
    if type(layer) not in (*_BATCH_NORMS, nn.LayerNorm):
        raise ValueError(
            f"params must match torch's own layers, got {name!r} of type {kind}, which may do more than "
            "normalise: leave it out, or build it with another norm"
        )
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        raise ValueError(f"params must match layers without hooks, got {name!r}: register them afterwards")


def _group_norm(layer: nn.Module, name: str, groups: int) -> nn.Module:
    assert isinstance(layer, _BatchNorm)
    channels = layer.num_features
    if channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of {name!r}, got {groups}")
    if groups == channels:
        return _PerChannel(name, channels, layer.eps, layer.affine)
    return nn.GroupNorm(groups, channels, layer.eps, layer.affine, device="meta")


def _rms_norm(layer: nn.Module, name: str, groups: int) -> nn.Module:
    assert isinstance(layer, nn.LayerNorm)
    return nn.RMSNorm(layer.normalized_shape, layer.eps, layer.elementwise_affine, device="meta")


def _frozen(layer: nn.Module, name: str, groups: int) -> nn.Module:
    assert isinstance(layer, _BatchNorm)
    if layer.running_mean is None:
        raise ValueError(f"params must match layers with running statistics, got {name!r}, which has none")
    return FrozenBatchNorm(layer.num_features, layer.eps, layer.momentum, layer.affine, device="meta")


def _sync(layer: nn.Module, name: str, groups: int) -> nn.Module:
    after: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(layer)  # type: ignore[no-untyped-call]  # untyped
    return after


_MAKERS: dict[str, Callable[[nn.Module, str, int], nn.Module]] = {
    "group": _group_norm,
    "layer": lambda layer, name, _: _group_norm(layer, name, 1),
    "instance": lambda layer, name, _: _group_norm(layer, name, int(layer.num_features)),  # type: ignore[arg-type]  # an int
    "rms": _rms_norm,
    "frozen_batch": _frozen,
    "sync_batch": _sync,
}
