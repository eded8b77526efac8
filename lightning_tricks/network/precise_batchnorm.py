"""Precise BatchNorm: running statistics estimated anew for the weights that are evaluated.

    mean = sum over all x of x / n,    var = sum over all x of (x - mean) ** 2 / n

per channel, over every entry that reaches a layer in some batches of training, instead of an average over
steps whose weights are gone.

References: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, https://arxiv.org/abs/2105.07576,
section 3, whose 200 batches are the default; of small batches, Wu and He, "Group Normalization", 2018,
https://arxiv.org/abs/1803.08494, table 2.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tricks.core import checks
from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import copy_
from lightning_tricks.lifecycle.batchnorm import (
    learning_batchnorms,
    reestimate_batchnorm,
    reestimate_for_validation,
    reestimate_outside_fit,
    statistics_fingerprint,
    trained_batchnorms,
)
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.outside_fit import OutOfReachError, given_loaders
from lightning_tricks.lifecycle.position import train_loaders
from lightning_tricks.lifecycle.seal import unsealed
from lightning_tricks.lifecycle.strategies import check_parts
from lightning_tricks.lifecycle.technique import Technique

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["PreciseBatchNorm"]

_SMALL_BATCH = 16


def _norms(module: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [(clean_name(n), layer) for n, layer in module.named_modules() if isinstance(layer, _BatchNorm)]


def _names(module: nn.Module, layers: list[_BatchNorm]) -> list[str]:
    return [name for name, layer in _norms(module) if layer in layers]


@final
@dataclass(eq=False, repr=False, kw_only=True)
class PreciseBatchNorm(Technique):
    """Estimate BatchNorm statistics over training batches before they are used for evaluation.

    It does so for the weights that each validation evaluates, for those that ``fit`` leaves behind, and for
    those of checkpoints that are tested.

    * **When** before each validation within ``fit``, for the weights that it evaluates (the average, with
      one), and at the end of ``fit``, for those that it leaves behind, fused ones too. Not in the sanity
      check, whose weights have not been trained yet. In ``validate``, ``test`` and ``predict`` outside of
      ``fit`` before the first batch, unless weights and statistics are to the bit those of the last estimate,
      which is so after ``fit`` and for a checkpoint of a validation.
    * **Changes** the running statistics, and nothing else: training does not use them, and goes on with
      averages that begin there. Layers that were in eval mode in training keep theirs. Random numbers,
      metrics and the places of loaders stay as they are. After an evaluation the module holds those that it
      was evaluated with.
    * **Logs** nothing; warns of batches below 16 samples, whose statistics are noisy in training, too, and
      if an evaluation outside of ``fit`` must take the statistics that the module holds, because there is
      no training data.
    * **Saves** a number that tells whether weights or statistics have changed since the last estimate, and
      the names of the layers; weights-only checkpoints hold neither, so that theirs are estimated again.
    * **Cost** a forward pass over ``batches`` batches by the module's own ``training_step``, all else in eval
      mode; a copy of the weights for as long.
    * **Use** with an average of weights, small batches, or weights that move fast; **not** needed with
      ``WeightFusion`` alone, which does it by itself, nor with frozen or group normalisation; refused beside
      ``SWAWeights`` and ``LAWA``, which do it for their means, but for ``update_batchnorm=False``.

    Outside of ``fit`` the training data are those of the datamodule, which is set up for ``fit`` for as long;
    else the loaders with which this technique last saw the module in ``fit``, or the module's own
    ``train_dataloader``, before which only ``setup`` of the evaluation has been called. ``training_step``
    finds optimizers, but no other hook of training is called before it; an error in it is one of the
    evaluation. Where no layers are known from training, they are those that are not in eval mode, or all of
    a module that is.

    Args:
        batches: How many training batches to look at, at least 1; at most an epoch.

    Example:
        Two layers with BatchNorm between them, in plain PyTorch, and 256 handwritten digits.
        ``DigitsClassifier`` trains any network on them by cross entropy and SGD; with ``QUIET`` the Trainer
        shows no bars and writes no files.

        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from torch import nn
        >>> from lightning_tricks import PreciseBatchNorm, to_yaml
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> data = DigitsData(training=256)

        A running mean is an average over the last steps, whose weights are gone. It should be that of all
        training images behind the first layer as it is now. How far is it from that after two epochs?

        >>> def trained(*techniques):
        ...     torch.manual_seed(0)
        ...     first, norm = nn.Linear(64, 32), nn.BatchNorm1d(32)
        ...     network = nn.Sequential(nn.Flatten(), first, norm, nn.ReLU(), nn.Linear(32, 10))
        ...     trainer = Trainer(max_epochs=2, callbacks=list(techniques), **QUIET)
        ...     trainer.fit(DigitsClassifier(network), data)
        ...     features = first(data.train_set.tensors[0].flatten(1))
        ...     print(f"mean is off by {(norm.running_mean - features.mean(dim=0)).abs().mean():.2f}")
        ...     variance = features.var(dim=0, correction=0)
        ...     print(f"variance is off by {(norm.running_var - variance).abs().mean():.2f}")
        ...     return trainer.callback_metrics["val_loss"]
        >>> loss = trained()
        mean is off by 0.17
        variance is off by 0.26

        The technique sends the training images through the network once more, before each validation and when
        training ends. Both are then what they should be, and the same weights are validated with a lower
        loss:

        >>> precise = PreciseBatchNorm(batches=200)
        >>> precise_loss = trained(precise)
        mean is off by 0.00
        variance is off by 0.00
        >>> bool(precise_loss < loss)
        True

        The same for LightningCLI:

        >>> print(to_yaml(precise), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.PreciseBatchNorm
            init_args:
              batches: 200
    """

    batches: int = 200
    _former: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)
    _estimates: int = field(default=0, init=False, repr=False)
    _layers: list[str] | None = field(default=None, init=False, repr=False)
    _precise: int | None = field(default=None, init=False, repr=False)
    _given: tuple[weakref.ref[LightningModule], Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.whole("batches", self.batches, 1)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the training data, which copies would hold, too."""
        return {**vars(self), "_given": None}

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_parts(trainer)
        if not learning_batchnorms(pl_module):
            raise ValueError(self._nothing_to_do(pl_module))

    def _nothing_to_do(self, pl_module: LightningModule) -> str:
        return (
            "the module must have a BatchNorm whose statistics move in training, got none in "
            f"{type(pl_module).__name__}: remove {self.state_key}"
        )

    def claims(self) -> Iterable[Claim]:
        return [self.claim("batchnorm", None)]

    def saved(self) -> dict[str, Any]:
        runner = self.conductor.trainer
        if runner.state.fn == "fit" and runner.state.stage is not None:  # later, modes may be given back
            module = runner.lightning_module
            self._layers = _names(module, trained_batchnorms(runner, module))
        return {"layers": self._layers, "precise": self._precise}

    def restore(self, state: dict[str, Any]) -> None:
        self._layers, self._precise = state.get("layers"), state.get("precise")

    def read_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        entry = unsealed(checkpoint, self.state_key)
        if entry is not None and trainer.state.fn != "fit":
            self.restore(entry["state"])

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        given = given_loaders(trainer)
        self._given = None if given is None else (weakref.ref(pl_module), given)
        apart = any(not isinstance(layer, nn.SyncBatchNorm) for layer in learning_batchnorms(pl_module))
        sizes = [getattr(loader, "batch_size", None) for loader in train_loaders(trainer)]
        known = [size for size in sizes if type(size) is int]
        if apart and known and min(known) < _SMALL_BATCH:
            warn(
                trainer,
                f"BatchNorm should see at least {_SMALL_BATCH} samples at a time, got {min(known)}: take "
                "larger batches, or ReplaceNorm(to='group')",
            )

    # In the hooks of epochs, where every callback has put in the weights that it wants evaluated.

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._outside_fit(trainer, pl_module)
        elif not trainer.sanity_checking:
            norms = [layer for layer in pl_module.modules() if isinstance(layer, _BatchNorm)]
            buffers = [buffer for layer in norms for buffer in layer.buffers(recurse=False)]
            copies = [buffer.clone() for buffer in buffers]
            layers = trained_batchnorms(trainer, pl_module)
            reestimate_for_validation(trainer, pl_module, most=self.batches, layers=layers)
            self._former = [(*pair, pair[0].clone()) for pair in zip(buffers, copies, strict=True)]
            self._note(trainer, pl_module, layers)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._outside_fit(trainer, pl_module)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._outside_fit(trainer, pl_module)

    def _outside_fit(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layers = self._known(pl_module)
        if layers is None and not (layers := trained_batchnorms(trainer, pl_module)):
            warn(trainer, self._nothing_to_do(pl_module))
        if not layers:
            return  # without a warning if training kept them all as they were
        reference, given = self._given or (None, None)
        try:
            if statistics_fingerprint(trainer, pl_module, layers) == self._precise:
                return
            reestimate_outside_fit(
                trainer,
                pl_module,
                most=self.batches,
                layers=layers,
                given=given if reference is not None and reference() is pl_module else None,
            )
        except OutOfReachError as error:
            warn(
                trainer,
                f"{self.state_key} evaluates with the statistics that the module holds, which are not known "
                f"to be those of its weights: {error}",
            )
        else:
            self._note(trainer, pl_module, layers)

    def _known(self, pl_module: LightningModule) -> list[_BatchNorm] | None:
        """Return the layers that trained; ``None`` if no training is known, or of another module."""
        norms = {name: layer for name, layer in _norms(pl_module) if layer.running_mean is not None}
        if self._layers is None or not norms.keys() >= set(self._layers):
            return None
        return [norms[name] for name in self._layers]

    def _note(self, trainer: Trainer, pl_module: LightningModule, layers: list[_BatchNorm]) -> None:
        self._estimates += 1
        self._layers = _names(pl_module, layers)
        self._precise = statistics_fingerprint(trainer, pl_module, layers)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._former = []  # what is saved now is what was validated

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layers = learning_batchnorms(pl_module)
        reestimate_batchnorm(trainer, pl_module, most=self.batches, layers=layers)
        self._note(trainer, pl_module, layers)

    def undo(self) -> None:
        # Only what still stands there: others may have taken out what they had put in.
        for buffer, former, ours in self._former:
            if torch.equal(buffer, ours):
                copy_([buffer], [former])
        self._former = []

    def outcome(self) -> dict[str, float | int | str]:
        return {"estimates": self._estimates}
