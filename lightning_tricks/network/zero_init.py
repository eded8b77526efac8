"""Zero initialisation of residual branches: each block starts as the identity.

    y = x + W f(x),    W = 0 and its bias 0

so that at first the network is as deep as its shortcuts. ``W`` is the last factor of the branch, and the only
one that is zero: at the first step all others get no gradient, afterwards they do.

References: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
https://arxiv.org/abs/1706.02677, section 5.1 (the last BatchNorm weight of each block); Zhang et al., "Fixup
Initialization: Residual Learning Without Normalization", 2019, https://arxiv.org/abs/1901.09321 (the last
layer of each branch).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from lightning_tricks.core.select import Patterns, as_patterns, clean_name
from lightning_tricks.core.tensors import copy_
from lightning_tricks.lifecycle.layouts import Wholes
from lightning_tricks.lifecycle.notice import say
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.lifecycle.training_pass import only_looking, training_steps
from lightning_tricks.network.freshness import refuse_stale, stale_names
from lightning_tricks.network.identity_check import UNTOLD, IdentityCheck
from lightning_tricks.network.initial_weights import Initial, Whole, check_in_place
from lightning_tricks.network.residual_branches import Branch, residual_branches

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["ZeroInitResidual", "zero_init_residual_"]

_COLUMNS: dict[str, Literal["left", "right"]] = {"zero": "left", "block": "left", "starts as": "left"}


@torch.no_grad()
def zero_init_residual_(module: nn.Module, *, params: Patterns = "*", last: Patterns | None = None) -> str:
    """Zero the last factor of each residual branch of ``module``, and return a table of them.

    For ``__init__``, and for ``configure_model`` before weights are sharded. That the blocks are the identity
    then is not verified, for want of data: read the table, or use :class:`ZeroInitResidual`. Blocks with a
    ``downsample`` or ``shortcut`` are left alone where their layers and that differ in width or stride, and
    where they hold layers of unknown types.

    Args:
        module: Changed in place.
        params: Name patterns of the weights that may be zeroed.
        last: Those of more last factors than are found.

    Raises:
        ValueError: If there is no such branch, or another factor of one is zero.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True)
        >>> print(zero_init_residual_(layer))
        2 residual branches start at zero
        | zero                                               | block | starts as    |
        |----------------------------------------------------|-------|--------------|
        | self_attn.out_proj.weight, self_attn.out_proj.bias |       | not verified |
        | linear2.weight, linear2.bias                       |       | not verified |
    """
    branches, alone = residual_branches(module, params, last, run=False)
    named = module.named_parameters(remove_duplicate=False)
    values: dict[str, Tensor] = {clean_name(name): parameter for name, parameter in named}
    check_single_zero(branches, values.__getitem__)
    for each in (each for branch in branches for each in branch.zeroed):
        each.parameter.zero_()
    return branch_table(f"{len(branches)} residual branches start at zero", branches, alone, {})


def check_single_zero(branches: Iterable[Branch], whole: Whole) -> None:
    """Refuse branches of which another factor is zero already, so that neither would ever learn.

    Args:
        branches: The branches.
        whole: Gives all values of a weight by its clean name.

    Raises:
        ValueError: If there is one; names both factors.
    """
    branches = list(branches)
    zeroed = {each.name for branch in branches for each in branch.zeroed}
    for branch in branches:
        for name in branch.weights:
            if name not in zeroed and not whole(name).any():
                raise ValueError(
                    f"a branch must have one zero factor, got {name!r} at zero beside "
                    f"{branch.zeroed[0].name!r}, so that neither would ever learn: leave one as it is"
                )


def branch_table(
    title: str,
    branches: Iterable[Branch],
    alone: Mapping[str, str],
    verdicts: Mapping[nn.Module, str],
) -> str:
    """Return which weights are zero, what their blocks start as, and which blocks are left alone."""
    rows = [(", ".join(each.name for each in b.zeroed), *_proved(b, verdicts)) for b in branches]
    left = (f"left alone: {name or 'the module'}, {why}" for name, why in alone.items())
    return "\n".join([text_table(title, _COLUMNS, rows), *left])


def _proved(branch: Branch, verdicts: Mapping[nn.Module, str]) -> tuple[str, str]:
    """Return name and verdict of the block of ``branch``, or else of the smallest identity around it."""
    if branch.block is not None and verdicts:
        return branch.name, verdicts.get(branch.block, "not called")
    told = ((name, verdicts.get(module)) for name, module in branch.around)
    return next(((name, it) for name, it in told if it and it != UNTOLD), (branch.name, UNTOLD))


@final
@dataclass(eq=False, repr=False, kw_only=True)
class ZeroInitResidual(Technique):
    """Let each residual block start as the identity, and show that it does (equation above).

    The last factor of its branch is zero.

    * **When** before the first batch of a run that continues none, after all other initial weights.
    * **Changes** weight and bias of the last normalisation, or else of the last layer, of each residual
      branch: :mod:`lightning_tricks.network.residual_branches` says how these are told, ``last`` names more.
      Torch's blocks that normalise after the sum are left alone, and those whose ``shortcut`` is ``False``.
      Weights that were loaded, trained or set are refused, and a block where any other parameter but a bias
      is zero, such as a scale of its branch.
    * **Logs** nothing; prints a table of what is zero, and what each block proved to be on one batch: its
      input, its shortcut, or the activation of either where the block has one behind the sum (the identity
      too, if what comes in is not negative). Anything else is an error, a block called only in parts too.
      Not verified, which the table says, are factors that ``last`` names where no module around them is the
      identity, blocks of which ``params`` leaves a branch out, and blocks that take or return no tensor but,
      say, a dictionary.
    * **Saves** nothing: a run that goes on has its weights.
    * **Cost** one training step without backward. At the first step the other weights of a branch get no
      gradient.
    * **Use** for deep residual networks and transformers, at high rates above all; **not** to fine-tune.

    Args:
        params: Name patterns of the weights that may be zeroed.
        last: Those of last factors that are not found, in blocks of your own.
        overwrite: Those of weights that may be lost although somebody loaded, trained or set them.

    Example:
        A small residual network and 256 handwritten digits. ``DigitsClassifier`` trains any network on them
        by cross entropy and SGD; with ``QUIET`` the Trainer shows no bars and writes no files.

        >>> from copy import deepcopy
        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import LambdaCallback
        >>> from lightning_tricks import ZeroInitResidual, to_yaml
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> from lightning_tricks.recipes.residual import ResidualNet
        >>> _ = torch.manual_seed(0)
        >>> network = ResidualNet(widths=(8, 16), blocks=2)
        >>> data = DigitsData(training=256)

        How far is a block from the identity? We feed the second one with positive numbers, as the ReLU before
        it does, and feed a copy, since looking would move the statistics of its BatchNorm:

        >>> x = torch.rand(4, 8, 8, 8)
        >>> def distance(network):
        ...     block = deepcopy(network.groups[0][1]).eval()
        ...     return (block(x) - x).abs().max().item()
        >>> round(distance(network), 1)
        0.4

        The technique zeroes the last normalisation of each branch. Then it runs one training batch, and
        prints what each block proved to be: its input, or its shortcut where the shape changes. We look
        ourselves, too:

        >>> zero = ZeroInitResidual()
        >>> look = LambdaCallback(on_train_start=lambda trainer, model: print(distance(model.network)))
        >>> trainer = Trainer(max_epochs=3, callbacks=[zero, look], **QUIET)
        >>> trainer.fit(DigitsClassifier(network), data)
        ZeroInitResidual: 4 residual branches start at zero
        | zero                                ... | block              | starts as            |
        ...
        | network.groups.0.1.second.1.weight, ... | network.groups.0.1 | its input            |
        ...
        | network.groups.1.0.second.1.weight, ... | network.groups.1.0 | relu of its shortcut |
        ...
        0.0

        Zero is not dead. It is one factor of its branch, so that it gets a gradient, and once it has moved so
        do the others. After three epochs each branch adds something:

        >>> [bool(block.second[1].weight.any()) for group in network.groups for block in group]
        [True, True, True, True]

        Blocks of one's own, which add ``attn.out`` and ``mlp.down`` to what comes in, are told by name. For
        LightningCLI that is:

        >>> own = ZeroInitResidual(last=("blocks.*.attn.out", "blocks.*.mlp.down"))
        >>> print(to_yaml(own), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.ZeroInitResidual
            init_args:
              params: '*'
              last:
              - blocks.*.attn.out
              - blocks.*.mlp.down
              overwrite: null
    """

    build_order: ClassVar[int] = 1

    params: Patterns = "*"
    last: Patterns | None = None
    overwrite: Patterns | None = None
    _branches: list[Branch] = field(default_factory=list, init=False, repr=False)
    _alone: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        as_patterns("params", self.params)
        if self.last is not None:
            as_patterns("last", self.last)
        if self.overwrite is not None:
            as_patterns("overwrite", self.overwrite)

    def _zeroed(self) -> Iterable[Initial]:
        return (each for branch in self._branches for each in branch.zeroed)

    def build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._branches, self._alone = residual_branches(pl_module, self.params, self.last)

    def claims(self) -> Iterable[Claim]:
        return [self.claim("zero_weights", {each.name: each.parameter for each in self._zeroed()})]

    def initialize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_in_place(self._zeroed())
        wholes, ours = Wholes(trainer, pl_module), self.conductor.initialized
        fresh = {
            each.name: each.parameter in ours
            or each.looks_fresh(wholes.read)
            or not wholes.read(each.name).any()
            for each in self._zeroed()
        }
        refuse_stale(stale_names(fresh, pl_module, self.overwrite))
        check_single_zero(self._branches, wholes.read)
        parts = [wholes.part(each.name) for each in self._zeroed()]
        before = [part.clone() for part in parts]
        for part in parts:
            part.zero_()
        check = IdentityCheck(self._branches)
        try:
            with only_looking(trainer, pl_module, ()), check.watching():
                training_steps(trainer, pl_module, 1)
            check.check()
        except BaseException:
            copy_([wholes.part(each.name) for each in self._zeroed()], before)
            raise
        title = f"{self.state_key}: {len(self._branches)} residual branches start at zero"
        say(trainer, branch_table(title, self._branches, self._alone, check.verdicts))
