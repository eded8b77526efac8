"""What calls without weights do to the units that flow through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lightning_tricks.fusion.channels import Channels, fix, join

__all__ = ["CALLS", "Flow", "UnknownError", "flatten", "over_pixels"]


@dataclass(frozen=True)
class Flow:
    """A tensor on its way through a network.

    Attributes:
        blocks: Its units, one block after the other; ``None`` if they stay, as those of the input do.
        last: Whether they lie along the last axis, as after a linear layer, or along axis 1.
        ndim: Of the tensor, with the batch; ``None`` if that is not known.
        several: Whether each unit may have several entries along the axis, as after images were flattened.
    """

    blocks: tuple[Channels, ...] | None = None
    last: bool = False
    ndim: int | None = None
    several: bool = False

    def axis(self, dim: int) -> int | None:
        """Return how far the axis ``dim`` lies behind that of the units; ``None`` if that is not known."""
        if (dim < 0) == self.last:
            return dim + 1 if self.last else dim - 1
        if self.ndim is None:
            return None
        return dim - self.ndim + 1 if self.last else dim + self.ndim - 1


SHAPE, BATCH = "shape", "batch size"  # what stands for them as arguments


class UnknownError(ValueError):
    """Of a call it is not known what it does to units."""


def over_pixels(flow: Flow, *args: Any, **kwargs: Any) -> Flow:
    """Return what comes of pooling, padding or resizing along the axes behind that of the units."""
    if flow.last or (flow.ndim or 3) < 3:
        raise UnknownError("it is not over pixels alone")
    return flow


def _joined(*values: Any, **kwargs: Any) -> Flow:
    """Return what comes of flows entry by entry, such as their sum; numbers do nothing."""
    flows: list[Flow] = [value for value in (*values, *kwargs.values()) if isinstance(value, Flow)]
    first, *others = flows
    for other in others:
        if first.blocks is None or other.blocks is None:
            fix((*(first.blocks or ()), *(other.blocks or ())))
            first = first if other.blocks is None else other
        elif replace(first, blocks=None) != replace(other, blocks=None):
            raise UnknownError("its inputs differ in their axes")
        else:
            join(first.blocks, other.blocks)
    return first


def _chained(flows: Any, dim: int = 0, **kwargs: Any) -> Flow:
    dim = kwargs.get("axis", dim)
    if all(flow.blocks is None for flow in flows):
        return Flow()
    if any(flow.blocks is None or flow.axis(dim) != 0 or flow.several for flow in flows):
        raise UnknownError("it joins something else than units with one entry each, or the input")
    first: Flow = flows[0]
    return replace(first, blocks=tuple(block for flow in flows for block in flow.blocks))


def flatten(flow: Flow, start_dim: int = 0, end_dim: int = -1, **kwargs: Any) -> Flow:
    """Return what comes of flattening the axes from ``start_dim`` to ``end_dim``."""
    start, end = flow.axis(start_dim), flow.axis(end_dim)
    to_last = end_dim == -1 or end_dim == (flow.ndim or 0) - 1
    if not flow.last and start == 0 and to_last:
        return Flow(flow.blocks, last=True, ndim=2, several=flow.several or flow.ndim != 2)
    if start is not None and end is not None and start > 0 and to_last and flow.ndim is not None:
        return replace(flow, ndim=start + 2)
    if start == end:
        return flow
    raise UnknownError("it mixes units with another axis")


def _viewed(flow: Flow, *shape: Any, **kwargs: Any) -> Flow:
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = tuple(shape[0])
    if len(shape) != 2 or shape[0] is not BATCH or shape[1] != -1:
        raise UnknownError("only (x.shape[0], -1) is known")
    return flatten(flow, 1)


def _reduced(flow: Flow, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Flow:
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    places = [flow.axis(each) for each in dims]
    if not dims or flow.last or any(place is None or place < 1 for place in places):
        raise UnknownError("it is not over pixels alone")
    return flow if keepdim or flow.ndim is None else replace(flow, ndim=flow.ndim - len(dims))


def _squeezed(flow: Flow, dim: Any = None, **kwargs: Any) -> Flow:
    return _reduced(flow, dim)


def _indexed(flow: Any, index: Any) -> Any:
    if flow is SHAPE:
        return BATCH if index == 0 else SHAPE
    whole = slice(None, None, None)
    entries = index if isinstance(index, tuple) else (index,)
    if flow.last or any(entry != whole for entry in entries[:2]):
        raise UnknownError("it takes some of the units, or of the batch")
    if not all(isinstance(entry, slice) for entry in entries):
        raise UnknownError("only slices of pixels are known")
    return flow


def _padded(flow: Flow, pad: Any, mode: str = "constant", *args: Any, **kwargs: Any) -> Flow:
    if flow.last or flow.ndim is None or flow.several:
        raise UnknownError("it is not over pixels or units with one entry each")
    pixels = 2 * (flow.ndim - 2)
    before, after = [*pad[pixels : pixels + 2], 0, 0][:2]
    if min(before, after) < 0 or any(pad[pixels + 2 :]) or ((before or after) and mode != "constant"):
        raise UnknownError("it changes units")
    assert flow.blocks is not None
    # New channels are alike, so that any order of theirs will do.
    start, end = ((Channels("padding", size),) if size else () for size in (before, after))
    return replace(flow, blocks=(*start, *flow.blocks, *end))


def _asked(flow: Flow, *args: Any, **kwargs: Any) -> str:
    return BATCH if args == (0,) else SHAPE


def _attribute(flow: Flow, name: str) -> Any:
    if name not in ("shape", "dtype", "device", "ndim"):
        raise UnknownError(f"it takes {name}")
    return SHAPE if name == "shape" else None


def _named(call: Callable[..., Any], names: str) -> dict[str, Callable[..., Any]]:
    return {name: call for each in names.split() for name in (each, f"{each}_")}


CALLS: dict[str, Callable[..., Any]] = {
    **_named(
        _joined,
        "relu relu6 leaky_relu elu celu selu gelu silu mish tanh sigmoid logsigmoid softplus softsign "
        "tanhshrink hardtanh hardswish hardsigmoid hardshrink softshrink threshold dropout dropout1d "
        "dropout2d dropout3d alpha_dropout feature_alpha_dropout abs neg exp square sqrt pow clamp "
        "contiguous clone detach float double half bfloat16 softmax log_softmax",
    ),
    **_named(
        over_pixels,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "adaptive_max_pool3d lp_pool1d lp_pool2d interpolate",
    ),
    **_named(_joined, "add iadd sub isub mul imul truediv itruediv div maximum minimum"),
    **_named(_reduced, "mean sum amax amin"),
    "cat": _chained,
    "concat": _chained,
    "flatten": flatten,
    "view": _viewed,
    "reshape": _viewed,
    "squeeze": _squeezed,
    "getitem": _indexed,
    "getattr": _attribute,
    "size": _asked,
    "pad": _padded,
}
"""Of each function or method what it does, by its name; those that change their input end with ``_``."""
