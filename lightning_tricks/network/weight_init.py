"""Initial weights by a scheme, with the fans of every kind of layer and the gain of what really follows.

    Var(w) = gain ** 2 / n_in    and so on, by scheme: :mod:`lightning_tricks.network.schemes`

Reference: He et al., "Delving Deep into Rectifiers: Surpassing Human-Level Performance on ImageNet
Classification", 2015, https://arxiv.org/abs/1502.01852; those of the other schemes stand beside their
formulas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, final

import torch
from torch import nn

from lightning_tricks.core import checks
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.lifecycle.layouts import Wholes
from lightning_tricks.lifecycle.notice import say
from lightning_tricks.lifecycle.randomness import drawn_seed, shared_generator
from lightning_tricks.lifecycle.strategies import any_of
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.network.freshness import refuse_stale, stale_names
from lightning_tricks.network.initial_weights import Initial, initial_claim, initial_table, initials_of
from lightning_tricks.network.schemes import LARGEST, Scheme, SchemeName

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["WeightInit", "initialize_"]


@torch.no_grad()
def initialize_(  # noqa: PLR0913  # settings, as those of WeightInit
    module: nn.Module,
    *,
    scheme: SchemeName = "kaiming_normal",
    nonlinearity: str = "relu",
    params: Patterns = "*",
    bias: float = 0.0,
    fan: Literal["in", "out"] = "in",
    std: float = 0.02,
    seed: int | None = None,
) -> str:
    """Give ``module`` initial weights, whatever it holds, and return a table of them.

    For ``__init__``, and for ``configure_model`` before weights are sharded.

    Args:
        module: Changed in place.
        scheme: How; see :class:`WeightInit`, also for the others.
        nonlinearity: The activation behind layers where none is seen.
        params: Name patterns of the parameters to set.
        bias: What biases are set to.
        fan: What kaiming divides by.
        std: Deviation of the normal schemes.
        seed: Where the draw starts; ``None`` takes one from torch's generator.

    Example:
        >>> net = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.LayerNorm(50), nn.Linear(50, 2))
        >>> print(initialize_(net, scheme="orthogonal", seed=1))
        orthogonal: 4 tensors
        | weight   | layer  | fans in, out | gain              | std expected | measured |
        |----------|--------|--------------|-------------------|--------------|----------|
        | 0.weight | Linear | 100, 50      | 1.414 relu        |       0.1414 |   0.1414 |
        | 3.weight | Linear | 50, 2        | 1.414 relu (told) |          0.2 |   0.1999 |
        left alone: '2.weight', '2.bias' of LayerNorm, normalisation starts as torch makes it
    """
    how = Scheme(name=scheme, nonlinearity=nonlinearity, fan=fan, std=std)
    initials, alone = initials_of(module, params, how)
    start = drawn_seed() if seed is None else checks.whole("seed", seed)
    bias = checks.in_range("bias", bias, -LARGEST, LARGEST)
    generator = torch.Generator().manual_seed(start)
    for each in initials:
        each.parameter.copy_(each.draw(how, bias, generator))
    title = f"{scheme}: {len(initials)} tensors"
    values: dict[str, torch.Tensor] = {each.name: each.parameter for each in initials}
    return initial_table(title, initials, alone, how, values.__getitem__)


@final
@dataclass(eq=False, repr=False, kw_only=True)
class WeightInit(Technique):
    """Give layers initial weights of the right size for their depth (:func:`initialize_`).

    Schemes are Xavier, Kaiming, LeCun, orthogonal and truncated normal, with the right fans of every layer
    and the gain of what follows it; weights that somebody made are left alone.

    * **When** once, in a run that continues none, after ``configure_model`` and before the optimizers.
    * **Changes** weights of linear layers, convolutions of both kinds, attention (query, key and value each
      by itself) and recurrent layers (gate by gate); embeddings by the normal schemes only; biases. All else
      is left alone, and a table says so. Weights that were loaded, trained or set are refused.
    * **Logs** nothing; prints a table of fans, gains and standard deviations, expected and measured.
    * **Saves** nothing: a run that goes on has its weights.
    * **Cost** one draw of all weights, on the CPU.
    * **Use** for deep networks without normalisation, or to follow a paper; **not** to fine-tune, nor for
      what makes its own initial weights. Kaiming keeps second moments from layer to layer for ReLU, its leaky
      form and no activation only. For others they grow: what 12 layers of width 512 sum up, from 2.4 to 8.6
      for GELU and from 2.8 to 49 for SiLU, and gradients as much (:mod:`lightning_tricks.network.gains`).
      There :class:`LSUV` measures instead.

    Args:
        scheme: ``"xavier_uniform"``, ``"xavier_normal"``, ``"kaiming_uniform"``, ``"kaiming_normal"``,
            ``"lecun_normal"``, ``"orthogonal"``, ``"normal"`` or ``"truncated_normal"``.
        nonlinearity: The activation behind layers where none is seen; its gain counts in the kaiming schemes
            and the orthogonal one. Seen are those in an ``nn.Sequential``, and those of torch's transformer
            layers behind ``linear1``; never those that a ``forward`` of your own calls.
        params: Name patterns of the parameters to set.
        bias: What biases are set to, at most 65504 in size.
        fan: Whether kaiming keeps the variance of what goes forward, ``"in"``, or of gradients, ``"out"``;
            the latter too is exact for ReLU, its leaky form and no activation only.
        std: Standard deviation of the normal schemes, above 0. What the truncated one cuts off at two of them
            leaves 0.88 of it.
        seed: Where the draw starts, at least 0; ``None`` takes one from torch's generator. All processes use
            that of the first.
        overwrite: Name patterns of weights that may be lost although somebody loaded, trained or set them.

    Example:
        Six layers in plain PyTorch, and 512 handwritten digits. ``DigitsClassifier`` trains any network on
        them by cross entropy and SGD; with ``QUIET`` the Trainer shows no bars and writes no files.

        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import LambdaCallback
        >>> from torch import nn
        >>> from lightning_tricks import WeightInit, to_yaml
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> def network():
        ...     torch.manual_seed(0)
        ...     hidden = [part for _ in range(4) for part in (nn.Linear(32, 32), nn.ReLU())]
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), *hidden, nn.Linear(32, 10))
        >>> data = DigitsData(training=512, batch_size=32)
        >>> data.setup("fit")
        >>> images, _ = data.val_set.tensors

        torch draws each weight with a variance of 1 / (3 n_in), and each ReLU halves what comes out. So a
        layer hands on a sixth, and six of them next to nothing: all images get the same logits, and after
        four epochs the network still guesses.

        >>> def spread(model):
        ...     return round(model(images).std(dim=0).mean().item(), 1)
        >>> plain = DigitsClassifier(network(), lr=0.01)
        >>> spread(plain)
        0.0
        >>> trainer = Trainer(max_epochs=4, **QUIET)
        >>> trainer.fit(plain, data)
        >>> bool(trainer.callback_metrics["val_accuracy"] > 0.5)
        False

        Kaiming's variance of 2 / n_in makes up for ReLU. The table tells what each weight was drawn with and
        what came of it; behind the last layer no activation is seen, so there the gain is as told. The
        logits, which we look at as training begins, differ now from image to image, and the network learns:

        >>> kaiming = WeightInit(scheme="kaiming_normal", nonlinearity="relu", seed=1)
        >>> look = LambdaCallback(on_train_start=lambda trainer, model: print(spread(model)))
        >>> model = DigitsClassifier(network(), lr=0.01)
        >>> trainer = Trainer(max_epochs=4, callbacks=[kaiming, look], **QUIET)
        >>> trainer.fit(model, data)
        WeightInit: kaiming_normal, 12 tensors
        | weight            | layer  | fans in, out | gain              | std expected | measured |
        |-------------------|--------|--------------|-------------------|--------------|----------|
        | network.1.weight  | Linear | 64, 32       | 1.414 relu        |       0.1768 |    0.18... |
        | network.3.weight  | Linear | 32, 32       | 1.414 relu        |         0.25 |   0.25... |
        | network.5.weight  | Linear | 32, 32       | 1.414 relu        |         0.25 |    0.23... |
        | network.7.weight  | Linear | 32, 32       | 1.414 relu        |         0.25 |   0.25... |
        | network.9.weight  | Linear | 32, 32       | 1.414 relu        |         0.25 |   0.25... |
        | network.11.weight | Linear | 32, 10       | 1.414 relu (told) |         0.25 |   0.24... |
        0.8
        >>> bool(trainer.callback_metrics["val_accuracy"] > 0.5)
        True

        To start these weights anew would lose what they have learned. That is an error before the first
        batch, unless ``overwrite`` names them:

        >>> try:
        ...     Trainer(max_epochs=4, callbacks=[kaiming], **QUIET).fit(model, data)
        ... except ValueError as error:
        ...     print(error)
        params must choose weights as torch first draws them, got 'network.1.weight', ...

        The same for LightningCLI, with all settings there are:

        >>> print(to_yaml(kaiming), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.WeightInit
            init_args:
              scheme: kaiming_normal
              nonlinearity: relu
              params: '*'
              bias: 0.0
              fan: in
              std: 0.02
              seed: 1
              overwrite: null
    """

    build_order: ClassVar[int] = 1

    scheme: SchemeName = "kaiming_normal"
    nonlinearity: str = "relu"
    params: Patterns = "*"
    bias: float = 0.0
    fan: Literal["in", "out"] = "in"
    std: float = 0.02
    seed: int | None = None
    overwrite: Patterns | None = None
    _initials: list[Initial] = field(default_factory=list, init=False, repr=False)
    _stale: list[str] = field(default_factory=list, init=False, repr=False)
    _table: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        self._how()
        as_patterns("params", self.params)
        self.bias = checks.in_range("bias", self.bias, -LARGEST, LARGEST)
        if self.seed is not None:
            checks.whole("seed", self.seed)
        if self.overwrite is not None:
            as_patterns("overwrite", self.overwrite)

    def _how(self) -> Scheme:
        return Scheme(name=self.scheme, nonlinearity=self.nonlinearity, fan=self.fan, std=self.std)

    def build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        how, ours = self._how(), self.conductor.initialized
        self._initials, alone = initials_of(pl_module, self.params, how)
        self._stale, self._table = [], ""
        if self.clock.position or trainer.global_step or ours.issuperset(i.parameter for i in self._initials):
            return
        wholes = Wholes(trainer, pl_module)
        # In any process: often the first alone has loaded weights, which DDP has yet to hand on.
        stale = any_of(trainer, [not each.looks_fresh(wholes.read) for each in self._initials])
        fresh = {each.name: not made for each, made in zip(self._initials, stale, strict=True)}
        self._stale = stale_names(fresh, pl_module, self.overwrite)
        if self._stale:
            return  # an error, unless a checkpoint turns up, of which nothing is known yet
        generator = shared_generator(trainer, self.seed)
        for each in self._initials:
            wholes.write(each.name, each.draw(how, self.bias, generator))
        ours.update(each.parameter for each in self._initials)
        title = f"{self.state_key}: {self.scheme}, {len(self._initials)} tensors"
        self._table = initial_table(title, self._initials, alone, how, wholes.read)

    def initialize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_stale(self._stale)
        if self._table:
            say(trainer, self._table)

    def claims(self) -> Iterable[Claim]:
        return [initial_claim(self, self._initials)]
