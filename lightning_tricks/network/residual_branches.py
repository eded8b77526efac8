"""Residual branches, told by how their blocks are built, and the last factor of each.

    block                                            last factor
    nn.TransformerEncoderLayer, DecoderLayer, which  ``out_proj`` of each attention, ``linear2``
    normalise before each branch (``norm_first``)
    a part named as attention beside one named as a  ``out_proj``, ``proj``, ``c_proj``, ... in each of them,
    feed-forward network                             or the last layer of an ``nn.Sequential``
    with an attribute ``downsample``, ``shortcut``:  the last normalisation or layer in the order of
    a layer, or ``None`` or ``True`` for none        registration, through ``nn.Sequential``

The first are torch's, the second those of timm, GPT-2 and Llama, the last the residual networks of
torchvision and timm. A branch is zero as soon as one factor of it is; with two, neither ever gets a gradient.
Names prove nothing: a block that has a ``downsample`` may call it on what its layers made, and is then no
residual one, which :mod:`lightning_tricks.network.identity_check` tells as it runs. Without a run only widths
and strides tell, and such a block is left alone where they differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from lightning_tricks.core.checks import listed
from lightning_tricks.core.exempt import NORM_LAYERS
from lightning_tricks.core.select import Patterns, clean_name, select
from lightning_tricks.network.initial_weights import Initial, owners_of

__all__ = ["Branch", "residual_branches"]

_TORCHS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_SHORTCUTS = ("downsample", "shortcut")
_ATTENTION = ("attn", "attention", "self_attn", "self_attention", "cross_attn", "cross_attention")
_FEED_FORWARD = ("mlp", "ffn", "feed_forward")
_PROJECTIONS = ("out_proj", "proj", "c_proj", "o_proj", "to_out", "fc2", "down_proj")


# Of each parameter the clean name, and the layers that hold it.
_Names = dict[nn.Parameter, tuple[str, tuple[tuple[nn.Module, str], ...]]]


@dataclass(frozen=True, eq=False)
class Branch:
    """A branch whose last factor is to be zero.

    Attributes:
        name: The clean name of its block; of a factor that a user named, its own.
        block: The block; ``None`` where a user named the factor, or left another branch of the block out.
        shortcut: The layer beside the branch, if it has any.
        end: The last factor.
        zeroed: The parameters of that.
        factors: The other factors of the branch.
        weights: The clean names of all other parameters of the block that could be a factor: neither a bias,
            nor of the shortcut, nor the last factor of another branch.
        around: Of a factor that a user named, name and module of all that hold it, the smallest first.
    """

    name: str
    block: nn.Module | None
    shortcut: nn.Module | None
    end: nn.Module
    zeroed: tuple[Initial, ...]
    factors: tuple[nn.Module, ...]
    weights: tuple[str, ...]
    around: tuple[tuple[str, nn.Module], ...] = ()


def residual_branches(
    module: nn.Module, params: Patterns, last: Patterns | None, *, run: bool = True
) -> tuple[list[Branch], dict[str, str]]:
    """Return the branches of ``module``, and why other blocks are left alone.

    Args:
        module: Searched with all its children.
        params: Patterns of the last factors that may be zeroed.
        last: Patterns of more of them.
        run: Whether a run will tell what the blocks are.

    Raises:
        ValueError: If a pattern matches nothing, or there is no branch.
    """
    chosen, names = set(select(module, params).values()), _names(module)
    found: dict[nn.Module, Branch] = {}
    alone: dict[str, str] = {}
    for path, block in module.named_modules():
        name = clean_name(path)
        if isinstance(block, _TORCHS) and not block.norm_first:
            alone[name] = f"{type(block).__name__} normalises after the sum, so it cannot be the identity"
            continue
        branches = [branch for branch in _branches(name, block, names) if branch.end not in found]
        if why := _no_residual(block, run=run or not branches):
            alone[name] = why
            continue
        wanted = [b for b in branches if not chosen.isdisjoint(each.parameter for each in b.zeroed)]
        for branch in wanted:
            # With a branch that is left as it is, a block is not the identity.
            whole = branch if len(wanted) == len(branches) else replace(branch, block=None)
            found[branch.end] = whole
    for branch in [] if last is None else _named(module, last, names):
        found.setdefault(branch.end, branch)
    if not found:
        skipped = f"; left alone: {listed(list(alone))}, {next(iter(alone.values()))}" if alone else ""
        raise ValueError(
            f"params must leave a residual branch that is known, got {params!r} for {type(module).__name__}: "
            f"name the last weight of each by last, such as last='blocks.*.attn.out'{skipped}"
        )
    return list(found.values()), alone


def _names(module: nn.Module) -> _Names:
    owners = owners_of(module)
    return {p: (name, tuple(owners[p])) for name, p in select(module, "*").items()}


def _zeroed(parameters: Iterable[nn.Parameter | None], names: _Names) -> tuple[Initial, ...]:
    every = dict.fromkeys(p for p in parameters if p is not None)
    return tuple(Initial(names[p][0], p, p.shape, names[p][1], (), "", 1.0) for p in every)


def _shortcut_attributes(block: nn.Module) -> dict[str, object]:
    found = {name: getattr(block, name) for name in _SHORTCUTS if hasattr(block, name)}
    return {k: v for k, v in found.items() if v is None or isinstance(v, bool | nn.Module)}


def _shortcuts(block: nn.Module) -> list[nn.Module | None]:
    """Return the layers beside the branch of ``block``, ``None`` if none is called; empty if it has none."""
    values = _shortcut_attributes(block).values()
    if False in values:
        return []
    return sorted((v if isinstance(v, nn.Module) else None for v in values), key=lambda v: v is None)


def _no_residual(block: nn.Module, *, run: bool) -> str | None:
    """Return what tells that ``block`` adds no shortcut to its layers, even if it does not ``run``."""
    if _is_transformer(block):
        return None
    for name, value in _shortcut_attributes(block).items():
        if value is False:
            return f"its {name} is False"
    return None if run or not _shortcuts(block) else _unlike(block, _shortcuts(block)[0])


def _unlike(block: nn.Module, shortcut: nn.Module | None) -> str | None:
    branch, beside = list(_beside_shortcut(block)), [] if shortcut is None else list(_leaves(shortcut))
    for layer in branch + beside:
        if not isinstance(layer, nn.PReLU) and not _weighted(layer) and any(True for _ in layer.parameters()):
            return f"what its {type(layer).__name__} does only a run can tell"
    width = next(size for layer in branch for size in _widths(layer))
    if _way(branch, width) != _way(beside, width):
        return "its layers differ from its shortcut in width or stride"
    return None


def _way(layers: Iterable[nn.Module], width: int) -> tuple[int, int, float]:
    """Return how wide input and output of ``layers`` are, ``width`` if they keep it, and their stride."""
    layers = list(layers)
    widths = [size for layer in layers for size in _widths(layer)] or [width]
    return widths[0], widths[-1], math.prod(map(_stride, layers))


def _widths(layer: nn.Module) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return (layer.in_channels, layer.out_channels) if isinstance(layer, _ConvNd) else ()


def _stride(layer: nn.Module) -> float:
    if not isinstance(layer, _ConvNd | _MaxPoolNd | _AvgPoolNd):
        return 1.0
    stride: int | tuple[int, ...] = layer.stride  # type: ignore[assignment]  # pooling declares none
    first = float(stride[0] if isinstance(stride, tuple) else stride)
    return 1.0 / first if isinstance(layer, _ConvTransposeNd) else first


def _branches(name: str, block: nn.Module, names: _Names) -> Iterator[Branch]:
    shortcut = next(iter(_shortcuts(block)), None)
    ends = [
        (end, factors, zeroed)
        for end, factors in _ends(block)
        if (zeroed := _zeroed((end._parameters.get(key) for key in ("weight", "bias")), names))
    ]
    others = {each.parameter for _, _, zeroed in ends for each in zeroed}
    if shortcut is not None:
        others.update(shortcut.parameters())
    weights = tuple(
        names[parameter][0]
        for key, parameter in block.named_parameters()
        if parameter not in others and "bias" not in key.rpartition(".")[2]
    )
    for end, factors, zeroed in ends:
        yield Branch(name, block, shortcut, end, zeroed, factors, weights)


def _named(
    module: nn.Module,
    last: Patterns,
    names: _Names,
) -> Iterator[Branch]:
    layers: dict[nn.Module, list[nn.Parameter]] = {}
    for parameter in select(module, last, name="last").values():
        layers.setdefault(names[parameter][1][0][0], []).append(parameter)
    for layer, parameters in layers.items():
        zeroed = _zeroed([*parameters, layer._parameters.get("bias")], names)
        holders = [(clean_name(path), m) for path, m in module.named_modules() if _holds(m, layer)]
        yield Branch(zeroed[0].name, None, None, layer, zeroed, (), (), tuple(reversed(holders)))


def _holds(module: nn.Module, layer: nn.Module) -> bool:
    return module is not layer and any(part is layer for part in module.modules())


def _ends(block: nn.Module) -> Iterator[tuple[nn.Module, tuple[nn.Module, ...]]]:
    """Yield the last factor of each branch of ``block``, and the other factors of that branch."""
    if isinstance(block, _TORCHS):
        yield from _torchs_ends(block)
    elif _is_transformer(block):
        for part in _parts(block, _ATTENTION + _FEED_FORWARD):
            if (end := _projection(part)) is not None:
                yield end, tuple(layer for layer in part.modules() if layer is not end and _weighted(layer))
    elif _shortcuts(block):
        layers = [layer for layer in _beside_shortcut(block) if _weighted(layer)]
        if any(isinstance(layer, nn.Linear | _ConvNd) for layer in layers):
            yield layers[-1], tuple(layers[:-1])


def _is_transformer(block: nn.Module) -> bool:
    return bool(_parts(block, _ATTENTION) and _parts(block, _FEED_FORWARD))


def _torchs_ends(
    block: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer,
) -> Iterator[tuple[nn.Module, tuple[nn.Module, ...]]]:
    for name in ("self_attn", "multihead_attn"):
        if (attention := getattr(block, name, None)) is not None:
            yield attention.out_proj, (attention,)
    yield block.linear2, (block.linear1,)


def _parts(block: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    found = (getattr(block, name, None) for name in names)
    return [_uncompiled(part) for part in found if isinstance(part, nn.Module)]


def _beside_shortcut(block: nn.Module) -> Iterator[nn.Module]:
    for child in block.children():
        if child not in _shortcuts(block):
            yield from _leaves(child)


def _projection(part: nn.Module) -> nn.Module | None:
    """Return the last layer of attention or of a feed-forward network."""
    if isinstance(part, nn.Sequential):
        rest = [layer for layer in part.children() if not isinstance(layer, _DropoutNd | nn.Identity)]
        return rest[-1] if rest and _weighted(rest[-1]) else None
    for name in _PROJECTIONS:
        if isinstance(child := getattr(part, name, None), nn.Module):
            return _projection(child) if isinstance(child, nn.Sequential) else _uncompiled(child)
    return None


def _leaves(child: nn.Module) -> Iterator[nn.Module]:
    child = _uncompiled(child)
    if isinstance(child, nn.Sequential):
        for part in child.children():
            yield from _leaves(part)
    else:
        yield child


def _weighted(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, _ConvNd, nn.MultiheadAttention, *NORM_LAYERS)) and any(
        key.endswith("weight") and value is not None for key, value in layer._parameters.items()
    )


def _uncompiled(module: nn.Module) -> nn.Module:
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner
