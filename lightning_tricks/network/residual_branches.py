"""Residual branches, told by how their blocks are built, and the last factor of each.

    block                                            last factor
    nn.TransformerEncoderLayer, DecoderLayer, which  ``out_proj`` of each attention, ``linear2``
    normalise before each branch (``norm_first``)
    a part named as attention beside one named as a  ``out_proj``, ``proj``, ``c_proj``, ... in each of them,
    feed-forward network                             or the last layer of an ``nn.Sequential``
    with an attribute ``downsample``, ``shortcut``   the last normalisation or layer in the order of
                                                     registration, through ``nn.Sequential``

The first are torch's, the second those of timm, GPT-2 and Llama, the last the residual networks of
torchvision and timm. A branch is zero as soon as one factor of it is; with two, neither ever gets a gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

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
        weights: The clean names of their weights.
    """

    name: str
    block: nn.Module | None
    shortcut: nn.Module | None
    end: nn.Module
    zeroed: tuple[Initial, ...]
    factors: tuple[nn.Module, ...]
    weights: tuple[str, ...]


def residual_branches(
    module: nn.Module, params: Patterns, last: Patterns | None
) -> tuple[list[Branch], dict[str, str]]:
    """Return the branches of ``module``, and why other blocks are left alone.

    Args:
        module: Searched with all its children.
        params: Patterns of the last factors that may be zeroed.
        last: Patterns of more of them.

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


def _branches(name: str, block: nn.Module, names: _Names) -> Iterator[Branch]:
    shortcut = next((s for s in (getattr(block, n, None) for n in _SHORTCUTS) if s is not None), None)
    for end, factors in _ends(block):
        weights = tuple(
            names[value][0]
            for factor in factors
            for key, value in factor._parameters.items()
            if value is not None and "weight" in key
        )
        if zeroed := _zeroed((end._parameters.get(key) for key in ("weight", "bias")), names):
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
        yield Branch(zeroed[0].name, None, None, layer, zeroed, (), ())


def _ends(block: nn.Module) -> Iterator[tuple[nn.Module, tuple[nn.Module, ...]]]:
    """Yield the last factor of each branch of ``block``, and the other factors of that branch."""
    attentions, networks = _parts(block, _ATTENTION), _parts(block, _FEED_FORWARD)
    if isinstance(block, _TORCHS):
        yield from _torchs_ends(block)
    elif attentions and networks:
        for part in attentions + networks:
            if (end := _projection(part)) is not None:
                yield end, tuple(layer for layer in part.modules() if layer is not end and _weighted(layer))
    elif any(hasattr(block, name) for name in _SHORTCUTS):
        layers = list(_beside_shortcut(block))
        if any(isinstance(layer, nn.Linear | _ConvNd) for layer in layers):
            yield layers[-1], tuple(layers[:-1])


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
    shortcuts = [getattr(block, name, None) for name in _SHORTCUTS]
    for child in block.children():
        if child not in shortcuts:
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
    elif _weighted(child):
        yield child


def _weighted(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, _ConvNd, nn.MultiheadAttention, *NORM_LAYERS)) and any(
        key.endswith("weight") and value is not None for key, value in layer._parameters.items()
    )


def _uncompiled(module: nn.Module) -> nn.Module:
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner
