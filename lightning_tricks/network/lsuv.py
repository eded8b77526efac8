"""LSUV: orthogonal weights, each layer then scaled to unit output variance on real batches.

    for each layer, in the order of execution:
        W <- orthogonal, b <- 0
        while |Var(W x + b) - 1| >= tolerance and fewer than T_max passes:  W <- W / sqrt(Var(W x + b))

The variance is that of all entries which come out of the layer, before its activation. Outputs are linear in
``W``, so that one pass does for all layers what the paper does layer by layer: each passes its output on as
if its weight were already scaled. Another pass measures what has come of it.

Reference: Mishkin and Matas, "All you need is a good init", 2016, https://arxiv.org/abs/1511.06422,
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, final

import torch
from torch.nn.modules.batchnorm import _NormBase

from lightning_tricks.core import checks
from lightning_tricks.core.checks import listed
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.lifecycle.batchnorm import Moments, moments_of_all
from lightning_tricks.lifecycle.layouts import Wholes
from lightning_tricks.lifecycle.notice import say, warn
from lightning_tricks.lifecycle.randomness import shared_generator
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.lifecycle.training_pass import only_looking, training_steps
from lightning_tricks.network.freshness import refuse_stale, stale_names
from lightning_tricks.network.initial_weights import Initial, check_in_place, initial_claim, left_alone
from lightning_tricks.network.unit_variance import ORTHOGONAL, Gauge, Measured, measured_layers

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["LSUV"]

_COLUMNS: dict[str, Literal["left", "right"]] = {
    "weight": "left",
    "layer": "left",
    "before": "right",
    "after": "right",
    "passes": "right",
}


def _counted(batches: int) -> str:
    return f"{batches} batch{'es' * (batches != 1)}"


@final
@dataclass(eq=False, repr=False, kw_only=True)
class LSUV(Technique):
    """Start with unit variance behind every layer, measured on real batches (equations above).

    Weights are orthogonal, and scaled until the output of each layer has that variance.

    * **When** before the first batch of a run that continues none.
    * **Changes** linear layers, convolutions of both kinds and ``nn.MultiheadAttention``: weights are
      orthogonal, biases zero, and the weight (of attention, that of its last projection) is scaled. Left
      alone, and named in a table, are layers that ``training_step`` calls never or several times, recurrent
      layers, those with a forward of their own, shared or parametrized weights, embeddings and
      normalisation; that nothing is left is an error. Where an output does not vary its layer is not scaled,
      with a warning. Weights that were loaded, trained or set are refused.
    * **Logs** nothing; prints a table of standard deviations before and after.
    * **Saves** nothing: a run that goes on has its weights.
    * **Cost** three times ``batches`` training steps without backward, in evaluation mode but for
      normalisation, and a copy of the weights meanwhile. Batches are the first of the training loader; one
      that shuffles draws an order of its own for them. Random states and loaders are put back, but a data set
      that counts for itself what was read is not.
    * **Use** for deep networks without normalisation, and activations that no scheme knows a gain for;
      **not** to fine-tune.

    Args:
        tolerance: Which distance of a variance from 1 is left, in (0, 1).
        batches: Over how many batches variances are taken, at least 1; on several processes in each, or as
            many as each has.
        max_passes: How often a layer is scaled at most, at least 1. More than one is needed only where
            batches differ, and for rounding.
        params: Name patterns of the weights to set; their biases go with them.
        overwrite: Name patterns of weights that may be lost although somebody loaded, trained or set them.
        seed: Where the draw of orthogonal weights starts, at least 0; ``None`` takes one from torch's
            generator. All processes use that of the first.

    Example:
        Ten layers with SiLU, in plain PyTorch, and 512 handwritten digits. ``DigitsClassifier`` trains any
        network on them by cross entropy and SGD; with ``QUIET`` the Trainer shows no bars and writes no
        files.

        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import LambdaCallback
        >>> from torch import nn
        >>> from lightning_tricks import LSUV, to_yaml
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> def network():
        ...     torch.manual_seed(0)
        ...     hidden = [part for _ in range(8) for part in (nn.Linear(32, 32), nn.SiLU())]
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.SiLU(), *hidden, nn.Linear(32, 10))
        >>> data = DigitsData(training=512, batch_size=32)
        >>> data.setup("fit")
        >>> images, _ = data.train_set.tensors

        What tells is the standard deviation behind each layer. With torch's own initial weights little is
        left of it behind the third one. torch has no gain for SiLU, and with that of ReLU it still fades:

        >>> def deviations(network):
        ...     found, x = [], images
        ...     for layer in network:
        ...         x = layer(x)
        ...         if isinstance(layer, nn.Linear):
        ...             found.append(round(x.std().item(), 1))
        ...     return found
        >>> deviations(network())
        [0.6, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
        >>> kaiming = network()
        >>> for layer in kaiming:
        ...     if isinstance(layer, nn.Linear):
        ...         _ = nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        >>> deviations(kaiming)
        [1.3, 1.2, 1.0, 1.0, 0.8, 0.6, 0.4, 0.4, 0.3, 0.3]

        LSUV needs no gain, because it measures: it makes each weight orthogonal and divides it by the
        deviation behind it on training batches. It prints what it found and left. We look at all images as
        training begins:

        >>> measured = LSUV(batches=4, seed=1)
        >>> look = LambdaCallback(on_train_start=lambda trainer, model: print(deviations(model.network)))
        >>> trainer = Trainer(max_epochs=4, callbacks=[measured, look], **QUIET)
        >>> trainer.fit(DigitsClassifier(network(), lr=0.01), data)
        LSUV: standard deviation behind 10 layers, by 4 batches
        | weight            | layer  |  before |  after | passes |
        |-------------------|--------|---------|--------|--------|
        ...
        | network.3.weight  | Linear |  0.19... |      1 |      1 |
        ...
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]

        A network that starts so learns. With torch's own initial weights it guesses:

        >>> bool(trainer.callback_metrics["val_accuracy"] > 0.5)
        True
        >>> trainer = Trainer(max_epochs=4, **QUIET)
        >>> trainer.fit(DigitsClassifier(network(), lr=0.01), data)
        >>> bool(trainer.callback_metrics["val_accuracy"] > 0.5)
        False

        The same for LightningCLI, with all settings there are:

        >>> print(to_yaml(measured), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.LSUV
            init_args:
              tolerance: 0.1
              batches: 4
              max_passes: 10
              params: '*'
              overwrite: null
              seed: 1
    """

    build_order: ClassVar[int] = 0

    tolerance: float = 0.1
    batches: int = 1
    max_passes: int = 10
    params: Patterns = "*"
    overwrite: Patterns | None = None
    seed: int | None = None
    _layers: list[Measured] = field(default_factory=list, init=False, repr=False)
    _alone: dict[str, tuple[str, str]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.tolerance = checks.in_range("tolerance", self.tolerance, 0.0, 1.0, open_low=True, open_high=True)
        checks.whole("batches", self.batches, 1)
        checks.whole("max_passes", self.max_passes, 1)
        as_patterns("params", self.params)
        if self.overwrite is not None:
            as_patterns("overwrite", self.overwrite)
        if self.seed is not None:
            checks.whole("seed", self.seed)

    def build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._layers, self._alone = measured_layers(pl_module, self.params)

    def _initials(self) -> Iterable[Initial]:
        return (initial for each in self._layers for initial in each.initials)

    def claims(self) -> Iterable[Claim]:
        return [initial_claim(self, self._initials())]

    def initialize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_in_place(self._initials())
        wholes, ours = Wholes(trainer, pl_module), self.conductor.initialized
        fresh = {
            each.name: each.parameter in ours or each.looks_fresh(wholes.read) for each in self._initials()
        }
        refuse_stale(stale_names(fresh, pl_module, self.overwrite))
        before, batches = self._look(trainer, pl_module, self._layers, None)
        layers = self._called_once(trainer, before, batches)
        generator = shared_generator(trainer, self.seed)
        for initial in (initial for each in layers for initial in each.initials):
            wholes.write(initial.name, initial.draw(ORTHOGONAL, 0.0, generator))
        ours.update(each.parameter for each in self._initials())
        after, passes = self._scale(trainer, pl_module, layers, wholes)
        counts = f"{len(layers)} layer{'s' * (len(layers) != 1)}, by {_counted(batches)}"
        title = f"{self.state_key}: standard deviation behind {counts}"
        rows = [
            (e.scaled, type(e.layer).__name__, f"{b.std:.4g}", f"{after[e].std:.4g}", str(passes[e]))
            for e, b in before.items()
            if e in after
        ]
        say(trainer, "\n".join([text_table(title, _COLUMNS, rows), *left_alone(self._alone)]))

    def _called_once(self, trainer: Trainer, gauges: dict[Measured, Gauge], batches: int) -> list[Measured]:
        """Return the layers that all processes called once a batch, and note why others are left alone."""
        again = torch.tensor([float(gauges[each].calls != batches) for each in self._layers])
        again = trainer.strategy.reduce(again.to(trainer.strategy.root_device), reduce_op="sum")
        layers = [each for each, other in zip(self._layers, again.tolist(), strict=True) if not other]
        for each in self._layers:
            if each not in layers:
                why = f"called {gauges[each].calls} times in {_counted(batches)}"
                self._alone |= {i.name: (type(each.layer).__name__, why) for i in each.initials}
        if not layers:
            name = self._layers[0].scaled
            kind, why = self._alone[name]
            raise ValueError(
                f"params must match a layer that training_step calls once a batch, got {self.params!r}: "
                f"{name} of {kind}, {why}"
            )
        return layers

    def _scale(
        self, trainer: Trainer, pl_module: LightningModule, layers: list[Measured], wholes: Wholes
    ) -> tuple[dict[Measured, Gauge], dict[Measured, int]]:
        """Bring the outputs of ``layers`` to unit variance; return what was measured last, and how often."""
        passes = dict.fromkeys(layers, 0)
        for left in range(self.max_passes, -1, -1):
            gauges, _ = self._look(trainer, pl_module, layers, self.tolerance if left else None)
            off = [each for each, gauge in gauges.items() if gauge.is_off(self.tolerance)]
            if not left or not off:
                break
            for each in off:
                wholes.part(each.scaled).div_(gauges[each].std)
                passes[each] += 1
        still = [each.scaled for each, gauge in gauges.items() if abs(gauge.variance - 1) >= self.tolerance]
        if still:
            warn(
                trainer,
                f"{self.state_key}: variances should be within {self.tolerance:g} of 1 after at most "
                f"{self.max_passes} passes, but behind {listed(still)} they are not: what comes out there "
                "does not vary, is not finite, or varies from pass to pass",
            )
        return gauges, passes

    def _look(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        layers: list[Measured],
        tolerance: float | None,
    ) -> tuple[dict[Measured, Gauge], int]:
        """Return what comes out of ``layers``, in the order of execution, and of how many batches."""
        device, order = trainer.strategy.root_device, list[Gauge]()

        def variance_of(moments: Moments) -> float:
            _, mean, variance = moments_of_all(trainer, moments)
            # A constant varies by the rounding of its mean, and must not be scaled to unit variance.
            noise = (16 * torch.finfo(mean.dtype).eps * mean).square()
            return variance.masked_fill(variance <= noise, 0.0).item()

        gauges = {
            each: Gauge(torch.zeros(1, dtype=each.dtype, device=device), variance_of, tolerance, order)
            for each in layers
        }
        learning = [m for m in pl_module.modules() if isinstance(m, _NormBase) and m.training]
        with only_looking(trainer, pl_module, learning), ExitStack() as stack:
            for each, gauge in gauges.items():
                stack.callback(each.layer.register_forward_hook(gauge).remove)
            batches = training_steps(trainer, pl_module, self.batches)
        for gauge in gauges.values():  # in one order, because processes wait for one another
            gauge.measure()
        places = {gauge: place for place, gauge in enumerate(order)}
        return dict(sorted(gauges.items(), key=lambda item: places.get(item[1], len(places)))), batches
