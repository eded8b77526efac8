"""The permutation spec of a module, found from how its units flow from layer to layer.

The module's ``forward`` is traced by ``torch.fx``, so that it need not be a sequence: convolutions, linear
layers and normalisation, pooling, activations and dropout, flattening, sums (residual shortcuts by identity,
projection or padding with zeros), products and concatenations are known. Units that are added have one
order; those of inputs and outputs stay. What is not known, such as attention, is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules import activation, dropout, padding, pooling, upsampling
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from lightning_tricks.core import checks
from lightning_tricks.core.select import clean_name
from lightning_tricks.fusion.channels import Channels, fix, join, leaves
from lightning_tricks.fusion.flows import CALLS, Flow, UnknownError, flatten, over_pixels
from lightning_tricks.fusion.methods import floating
from lightning_tricks.fusion.permutations import Axis, checked_spec

__all__ = ["permutation_spec"]

_Axes = list[tuple[Channels, ...] | None]
_PER_ENTRY = {activation.__name__, dropout.__name__}
_OVER_PIXELS = {padding.__name__, pooling.__name__, upsampling.__name__}
_LENGTHS = ("num_features", "num_channels", "num_parameters")
_HINT = "give a spec of which permutation goes along which axis of each tensor"


def permutation_spec(module: nn.Module) -> dict[str, tuple[Axis, ...] | None]:
    """Return which units of ``module`` may come into another order together: a spec for its state dict.

    Args:
        module: Neither run nor changed. All of its weights must be used by its ``forward``.

    Raises:
        ValueError: If a layer or call is not known, or no units could come into another order; names it.

    Example:
        >>> permutation_spec(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
        {'0.weight': ('0', None), '0.bias': ('0',), '2.weight': (None, '0'), '2.bias': (None,)}
    """
    module = _uncompiled(module)
    kind = type(module).__name__
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # whatever a forward raises on what is not a tensor
        reason = str(error).partition(". ")[0]
        raise ValueError(f"the forward of {kind} cannot be traced ({reason}): {_HINT}") from error
    walk = _Walk(module)
    walk.through(graph)
    return checked_spec(walk.spec(), f"the spec of {kind}")


def _uncompiled(module: nn.Module) -> nn.Module:
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


class _Tracer(fx.Tracer):
    """Sees through compiled parts."""

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        inner = _uncompiled(m)
        return super().call_module(inner, forward if inner is m else inner.forward, args, kwargs)


class _Walk:
    """A walk along a graph, in which the axes of weights get their units."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._tensors = module.state_dict(keep_vars=True)
        # Tied tensors are one.
        self._axes: dict[int, _Axes] = {}

    def through(self, graph: fx.Graph) -> None:
        """Follow each tensor of ``graph`` from the inputs to the outputs."""
        known: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            args = fx.map_arg(node.args, known.__getitem__)
            kwargs = fx.map_arg(node.kwargs, known.__getitem__)
            try:
                known[node] = self._value(node, args, kwargs)
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"what becomes of units in {self._called(node)} is not known ({error}): {_HINT}"
                ) from error

    def _called(self, node: fx.Node) -> str:
        if node.op != "call_module":
            return f"{_name(node)}, at {node.name}"
        return f"{clean_name(str(node.target))}, {type(self._layer(node)).__name__}"

    def _layer(self, node: fx.Node) -> nn.Module:
        return self._module.get_submodule(str(node.target))

    def _value(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "placeholder":
            return Flow()
        if node.op == "get_attr":
            self._stay(str(node.target))
            return Flow()
        if node.op == "output":
            fix(tuple(block for flow in _flows(args) for block in flow.blocks or ()))
            return None
        if node.op == "call_module":
            return self._through_layer(node, *args, **kwargs)
        name, flows = _name(node), _flows((args, kwargs))
        if flows and name not in ("getattr", "size") and all(flow.blocks is None for flow in flows):
            return Flow()  # what is done to the input alone leaves it as it is
        if name not in CALLS:
            raise UnknownError("no rule for it")
        return CALLS[name](*args, **kwargs)

    def _stay(self, path: str) -> None:
        if path in self._tensors:
            self._set(path, [None] * self._tensors[path].ndim)

    def _set(self, path: str, axes: _Axes) -> None:
        """Let the tensor at ``path`` have ``axes``, and those that it has already."""
        before = self._axes.setdefault(id(self._tensors[path]), axes)
        for old, new in zip(before, axes, strict=True):
            if old is None or new is None:
                fix((*(old or ()), *(new or ())))
            else:
                join(old, new)

    def _through_layer(self, node: fx.Node, flow: Flow, *args: Any, **kwargs: Any) -> Flow:
        layer, path = self._layer(node), str(node.target)
        if is_parametrized(layer):
            raise UnknownError("its weight is parametrized")
        if isinstance(layer, nn.Linear):
            return self._linear(path, layer, flow)
        if isinstance(layer, _ConvNd):
            return self._convolution(path, layer, flow)
        if isinstance(layer, (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)):
            return self._per_unit(path, layer, flow)
        if isinstance(layer, nn.Flatten):
            return flatten(flow, layer.start_dim, layer.end_dim)
        if any(True for _ in layer.parameters()):
            raise UnknownError("no rule for it")
        return _without_weights(layer, flow)

    def _new(self, path: str, size: int) -> tuple[Channels, ...]:
        return (Channels(clean_name(path), size),)

    def _linear(self, path: str, layer: nn.Linear, flow: Flow) -> Flow:
        if flow.blocks is not None and not flow.last and flow.ndim != 2:
            raise UnknownError("it acts on another axis than that of units")
        made = self._new(path, layer.out_features)
        self._set_all(path, layer, {"weight": [made, flow.blocks], "bias": [made]})
        return Flow(made, last=True, ndim=flow.ndim)

    def _convolution(self, path: str, layer: _ConvNd, flow: Flow) -> Flow:
        if flow.last:
            raise UnknownError("it acts on another axis than that of units")
        rest: _Axes = [None] * len(layer.kernel_size)
        ndim = len(rest) + 2
        if layer.groups > 1:
            if layer.groups != layer.in_channels or flow.blocks is None:
                raise UnknownError("its groups hold several channels each, or those of the input")
            if isinstance(layer, _ConvTransposeNd) and layer.out_channels != layer.in_channels:
                raise UnknownError("it is transposed and makes several channels of one")
            self._set_all(path, layer, {"weight": [flow.blocks, None, *rest], "bias": [flow.blocks]})
            several = flow.several or layer.out_channels != layer.in_channels
            return Flow(flow.blocks, ndim=ndim, several=several)
        made = self._new(path, layer.out_channels)
        ends = [flow.blocks, made] if isinstance(layer, _ConvTransposeNd) else [made, flow.blocks]
        self._set_all(path, layer, {"weight": [*ends, *rest], "bias": [made]})
        return Flow(made, ndim=ndim)

    def _per_unit(self, path: str, layer: nn.Module, flow: Flow) -> Flow:
        """Go through a layer that has a number for each unit, or one for all."""
        if isinstance(layer, nn.GroupNorm) and layer.num_groups not in (1, layer.num_channels):
            raise UnknownError("its groups hold several units each, and not all")
        names = ("weight", "bias", "running_mean", "running_var")
        if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            shape = layer.normalized_shape
            axes: _Axes = [None] * len(shape)
            from_end = 1 if flow.last or flow.ndim is None else flow.ndim - 1
            if from_end <= len(shape):
                axes[-from_end] = flow.blocks
        else:
            length = next(getattr(layer, name) for name in _LENGTHS if hasattr(layer, name))
            wrong = flow.last and flow.ndim not in (None, 2)
            if wrong or (flow.blocks is not None and length not in (1, *_lengths(flow, length))):
                raise UnknownError("it acts on another axis than that of units")
            single = isinstance(layer, nn.PReLU) and layer.num_parameters == 1
            axes = [None if single else flow.blocks]
        self._set_all(path, layer, dict.fromkeys(names, axes))
        return flow

    def _set_all(self, path: str, layer: nn.Module, axes: Mapping[str, _Axes]) -> None:
        for name, each in axes.items():
            if isinstance(getattr(layer, name, None), Tensor):
                self._set(f"{path}.{name}", list(each))

    def spec(self) -> dict[str, tuple[Axis, ...] | None]:
        """Return the axes of each tensor.

        Raises:
            ValueError: If the graph leaves one out.
        """
        unused = [
            name
            for name in floating(self._tensors)
            if id(self._tensors[name]) not in self._axes and self._tensors[name].ndim
        ]
        if unused:
            raise ValueError(f"forward must use every weight, but not {checks.listed(unused)}: {_HINT}")
        self._settle()
        return {
            clean_name(name): tuple(_written(axis) for axis in self._axes[id(tensor)])
            for name, tensor in self._tensors.items()
            if id(tensor) in self._axes
        }

    def _settle(self) -> None:
        """Fix blocks on an axis with fixed ones, since a spec has no name for those; name the rest."""
        every = [axis for axes in self._axes.values() for axis in axes if axis is not None]
        while mixed := [
            leaf
            for axis in every
            if any(leaf.fixed for leaf in leaves(axis))
            for leaf in leaves(axis)
            if not leaf.fixed
        ]:
            fix(mixed)
        taken: dict[str, Channels] = {}
        for leaf in (leaf for axis in every for leaf in leaves(axis)):
            name, count = leaf.name, 2
            while taken.setdefault(leaf.name, leaf) is not leaf:
                leaf.name, count = f"{name} {count}", count + 1


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _lengths(flow: Flow, length: int) -> list[int]:
    """Return how long the axis of the units may be."""
    units = sum(leaf.size for leaf in leaves(flow.blocks or ()))
    return [units, length] if flow.several and length % units == 0 else [units]


def _flows(value: Any) -> list[Flow]:
    if isinstance(value, Flow):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [flow for each in values for flow in _flows(each)]


def _without_weights(layer: nn.Module, flow: Flow) -> Flow:
    home = type(layer).__module__
    if home in _OVER_PIXELS and flow.blocks is not None:
        return over_pixels(flow)
    if home not in (*_PER_ENTRY, *_OVER_PIXELS, nn.Identity.__module__) or isinstance(layer, nn.GLU):
        raise UnknownError("no rule for it")
    return flow


def _written(axis: tuple[Channels, ...] | None) -> Axis:
    blocks = leaves(axis or ())
    if not blocks or any(leaf.fixed for leaf in blocks):
        return None
    return blocks[0].name if len(blocks) == 1 else tuple(leaf.name for leaf in blocks)
