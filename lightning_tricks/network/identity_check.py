"""Whether residual blocks are the identity as the network runs, and whether their branches can learn.

A block is if what comes out is what went in, or what its shortcut makes of that, or the activation of either
where the block has one behind the sum. The shortcut may get the block's input, or something made of it before
the last factor is called; what it makes of the branch's output is a link of that, and no way around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tricks.core.checks import listed
from lightning_tricks.core.exempt import NORM_LAYERS
from lightning_tricks.network.gains import ELEMENTWISE
from lightning_tricks.network.residual_branches import Branch

__all__ = ["UNTOLD", "IdentityCheck"]

UNTOLD = "not verified"
"""The verdict on a block that does not take and return tensors alone, such as one with a dictionary."""


_REMEDY = "leave it out by params, and name the last weight of each branch by last"


class IdentityCheck:
    """Watches blocks as they run.

    Attributes:
        verdicts: What each block that ran proved to be.
    """

    def __init__(self, branches: Iterable[Branch]) -> None:
        """Be ready to watch the blocks of ``branches``."""
        self._branches = list(branches)
        self._inputs: dict[nn.Module, Tensor] = {}
        self._shortcuts: dict[nn.Module, Tensor] = {}
        self._latest: dict[nn.Module, nn.Module] = {}
        self._called: set[nn.Module] = set()
        self._blind: set[nn.Module] = set()
        self._past_end: set[nn.Module] = set()
        self._behind: set[nn.Module] = set()
        self.verdicts: dict[nn.Module, str] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at all that goes through the blocks within this."""
        with ExitStack() as stack:
            for branch in self._branches:
                self._watch_branch(branch, stack)
            blocks: dict[nn.Module, nn.Module | None] = {m: None for b in self._branches for _, m in b.around}
            blocks |= {b.block: b.shortcut for b in self._branches if b.block}
            for block, shortcut in blocks.items():
                self._watch_block(block, shortcut, stack)
            yield

    def _watch_branch(self, branch: Branch, stack: ExitStack) -> None:
        def enters(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._called.add(layer)
            if branch.block is not None:
                self._past_end.add(branch.block)
            x = _tensor((*args, *kwargs.values()))
            if x is not None and _learns_nothing(layer, x):
                self._blind.add(layer)

        def called(layer: nn.Module, *_: Any) -> None:
            self._latest[branch.end] = layer

        stack.callback(branch.end.register_forward_pre_hook(enters, with_kwargs=True).remove)
        for layer in (*branch.factors, branch.end):
            stack.callback(layer.register_forward_hook(called).remove)

    def _watch_block(self, block: nn.Module, shortcut: nn.Module | None, stack: ExitStack) -> None:
        def enters(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._past_end.discard(block)
            self.verdicts.setdefault(block, UNTOLD)
            x = _tensor((*args, *kwargs.values()))
            if x is not None:
                self._inputs[block] = x.detach().clone()  # an activation may work in place

        def leaves(_: nn.Module, __: Any, output: Any) -> None:
            self._judge(block, output)

        stack.callback(block.register_forward_pre_hook(enters, with_kwargs=True).remove)
        stack.callback(block.register_forward_hook(leaves).remove)
        if shortcut is not None:
            self._watch_shortcut(block, shortcut, stack)

    def _watch_shortcut(self, block: nn.Module, shortcut: nn.Module, stack: ExitStack) -> None:
        def splits(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given, x = _tensor((*args, *kwargs.values())), self._inputs.get(block)
            own = given is not None and x is not None and _close(given.detach(), x)
            if block in self._past_end and not own:
                self._behind.add(block)

        def passes(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and block not in self._behind:
                self._shortcuts[block] = output.detach().clone()

        stack.callback(shortcut.register_forward_pre_hook(splits, with_kwargs=True).remove)
        stack.callback(shortcut.register_forward_hook(passes).remove)

    def _judge(self, block: nn.Module, output: Any) -> None:
        out = _tensor(output if isinstance(output, tuple) else (output,))
        x, beside = self._inputs.pop(block, None), self._shortcuts.pop(block, None)
        if out is not None and x is not None and self.verdicts.get(block) != "":  # different once is enough
            self.verdicts[block] = _verdict(block, out.detach(), x, beside)

    def check(self) -> None:
        """Refuse what is not as it should be.

        Raises:
            ValueError: If a block that ran is not the identity, a layer that was zeroed is not the last
                factor of its branch, or its input lets it learn nothing.
        """
        ends = [(b.zeroed[0].name, b.end) for b in self._branches]
        # The projection of torch's attention is never called itself.
        if early := [name for name, end in ends if end in self._called and self._latest[end] is not end]:
            raise ValueError(
                f"weights to be zeroed must be the last of their branch, got {listed(early)}, behind which "
                f"another layer is called: {_REMEDY}"
            )
        blocks = {b.block: b.name for b in self._branches if b.block}
        if behind := [name for block, name in blocks.items() if block in self._behind]:
            raise ValueError(
                f"a shortcut must get what its block gets, got {listed(behind)}, whose shortcut is called on "
                f"what its layers made, as a part of these: {_REMEDY}"
            )
        if other := [name for block, name in blocks.items() if self.verdicts.get(block) == ""]:
            raise ValueError(
                f"residual blocks must be the identity once their branches are zero, got {listed(other)}, "
                f"of which something else comes out: {_REMEDY}"
            )
        used = {b.block for b in self._branches if b.end in self._called}
        if apart := [name for block, name in blocks.items() if block in used - self.verdicts.keys()]:
            raise ValueError(
                f"residual blocks must be called to be told, got {listed(apart)}, of which only parts are "
                f"called: {_REMEDY}"
            )
        if dead := [name for name, end in ends if end in self._blind]:
            raise ValueError(
                f"a branch must have one zero factor, got {listed(dead)} with an input that is zero, so that "
                f"neither would ever learn: {_REMEDY}"
            )


def _tensor(values: tuple[Any, ...]) -> Tensor | None:
    floating = (v for v in values if isinstance(v, Tensor) and v.is_floating_point())  # no token, no mask
    return next(floating, None)


def _learns_nothing(layer: nn.Module, x: Tensor) -> bool:
    """Return whether a weight of ``layer`` gets no gradient whatever comes behind it."""
    if not x.numel():
        return False
    return bool((x == x.flatten()[0]).all()) if isinstance(layer, NORM_LAYERS) else not bool(x.any())


def _verdict(block: nn.Module, out: Tensor, x: Tensor, beside: Tensor | None) -> str:
    """Return what ``out`` is; empty if it is neither of what it may be."""
    inputs = {"its input": x} if beside is None else {"its input": x, "its shortcut": beside}
    behind: dict[str, Callable[[Tensor], Tensor]] = {"": torch.clone, "relu of ": torch.relu}
    for child in block.children():
        if isinstance(child, ELEMENTWISE):
            behind[f"{type(child).__name__.lower()} of "] = child
    for prefix, activation in behind.items():
        for name, wanted in inputs.items():
            if _close(out, activation(wanted.clone())):
                return prefix + name
    return ""


def _close(out: Tensor, wanted: Tensor) -> bool:
    if out.shape != wanted.shape:
        return False
    narrow = min((out.dtype, wanted.dtype), key=lambda kind: torch.finfo(kind).bits)
    room = torch.finfo(narrow).eps ** 0.5
    return torch.allclose(out.double(), wanted.double(), rtol=room, atol=room * 1e-3)
