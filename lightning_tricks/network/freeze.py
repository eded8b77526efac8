"""Freezing: a part of a network keeps its weights to the bit, from the start or from a later moment on.

    requires_grad = False, no gradient,   and so no step, no decay, no momentum

A frozen weight stays in its optimizer, which leaves it alone, so that parameter groups, schedules and
checkpoints keep their shape; but the optimizer forgets what it knew of it.

References: Yosinski et al., "How transferable are features in deep neural networks?", 2014,
https://arxiv.org/abs/1411.1792 (the first layers of another task, kept); Brock et al., "FreezeOut: Accelerate
Training by Progressively Freezing Layers", 2017, https://arxiv.org/abs/1706.04983 (freezing on the way).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, final

from torch import nn
from torch.optim import Optimizer

from lightning_tricks.core import checks
from lightning_tricks.core.duration import Duration, as_duration
from lightning_tricks.core.partition import check_initialised, written
from lightning_tricks.core.select import Patterns, as_patterns, select
from lightning_tricks.lifecycle.notice import say, warn
from lightning_tricks.lifecycle.seal import unsealed
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.network.statistics import DROPOUT, NORM_STATS, frozen_layers
from lightning_tricks.network.trainable import Trainable

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["Freeze", "check_left", "forget_"]

_COLUMNS: dict[str, Literal["left", "right"]] = {
    "part": "left",
    "learns": "left",
    "tensors": "right",
    "parameters": "right",
}


def check_left(
    optimizers: Sequence[Optimizer], frozen: Mapping[str, nn.Parameter], patterns: Patterns, *, scaled: bool
) -> None:
    """Accept ``frozen``, by name, if something is left that learns.

    Args:
        optimizers: All of the run.
        frozen: What is frozen at some time of the run.
        patterns: What chose it, for errors.
        scaled: Whether a gradient scaler steps the optimizers; it fails on one without any gradient.

    Raises:
        ValueError: If nothing is, or a scaled optimizer steps nothing that learns.
    """
    still = set(frozen.values())
    left = [
        sum(p.requires_grad and p not in still for group in each.param_groups for p in group["params"])
        for each in optimizers
    ]
    if not any(left):
        raise ValueError(
            "params must leave a parameter of an optimizer to learn, got "
            f"{written(patterns)!r}, which freezes the last of them"
        )
    if scaled and 0 in left:
        raise ValueError(
            "with a gradient scaler params must leave a parameter of each optimizer to learn, got "
            f"{written(patterns)!r}, which leaves none of optimizer {left.index(0)}: train in bf16-mixed"
        )


def forget_(optimizers: Iterable[Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Let ``optimizers`` give up what they keep for ``parameters``; the memory is free again."""
    still = set(parameters)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            # What LBFGS keeps, with the first of its parameters, is of all and would move them all.
            whole = "history_size" in group and not still.isdisjoint(group["params"])
            for parameter in group["params"] if whole else still.intersection(group["params"]):
                optimizer.state.pop(parameter, None)


def _rows(
    module: nn.Module, frozen: Mapping[str, nn.Parameter], patterns: Patterns, learns: str
) -> Iterator[tuple[str, ...]]:
    mine = set(frozen.values())
    others = [parameter for parameter in module.parameters() if parameter not in mine]
    parts = {
        (written(patterns), learns): list(mine),
        ("all else", "yes"): [parameter for parameter in others if parameter.requires_grad],
        ("all else", "not at the start"): [parameter for parameter in others if not parameter.requires_grad],
    }
    for words, held in parts.items():
        if held:
            yield *words, str(len(held)), f"{sum(parameter.numel() for parameter in held):,}"


@final
@dataclass(eq=False, repr=False, kw_only=True)
class Freeze(Technique):
    """Keep the weights and running statistics of a part of the network as they are, to the bit.

    It holds from the start or from a moment on; the part's dropout is off if asked.

    * **When** from the start, or before the first batch whose step lies at or past ``at``, never within an
      accumulation; then for the rest of the run.
    * **Changes** ``requires_grad`` of the parameters that ``params`` matches; gradients and what optimizers
      keep for them are dropped. Layers with running statistics whose parameters are all frozen normalise
      with these and leave them as they are. After the run, under FSDP1 before the next,
      ``requires_grad`` and the layers' modes are as before it.
    * **Logs** ``freeze/frozen``, how many parameters it keeps frozen; prints a table of what is frozen and
      what learns.
    * **Saves** whether its moment has come; a part that was frozen stays so in a resumed run.
    * **Cost** less than none: no gradient of the part, no backward pass through layers next to the input, no
      optimizer memory. A compiled module is compiled anew when ``at`` comes.
    * **Use** to keep pretrained layers when data are few, or embeddings; **not** to open them again, which
      ``ProgressiveUnfreeze`` does, nor with a later ``at`` beside ``Lookahead``, which would move them.

    Args:
        params: Name patterns or module types, such as ``"encoder.*"``, ``nn.Embedding`` (in YAML
            ``torch.nn.Embedding``), or by position ``"body[:-3]"``: all but the last three children of
            ``body``. At least one parameter of an optimizer must be left to learn.
        at: Moment from which on they are frozen, in optimizer steps, epochs or percent of the run.
        norm_stats: ``"frozen"``, or ``"train"`` to let running statistics of frozen layers move.
        dropout: ``"on"``, or ``"off"`` to run layers whose parameters are all frozen in evaluation mode.

    Example:
        A small residual network learns the digits 0 to 4, of which there are many: that is our pretrained
        network. ``DigitsClassifier`` trains any network by cross entropy and SGD; with ``QUIET`` the Trainer
        shows no bars and writes no files.

        >>> from copy import deepcopy
        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from torch import nn
        >>> from lightning_tricks import Freeze, to_yaml
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> from lightning_tricks.recipes.residual import ResidualNet
        >>> _ = torch.manual_seed(0)
        >>> network = ResidualNet(widths=(8, 16), classes=5)
        >>> many = DigitsData(classes=range(5), training=1500, batch_size=16)
        >>> Trainer(max_epochs=1, **QUIET).fit(DigitsClassifier(network, classes=5), many)

        Of 5 to 9 there are few. A linear probe keeps all that was learned and trains a new head alone, on
        features without the noise of dropout. What is frozen and what learns is printed as training begins:

        >>> network.head = nn.Linear(16, 5)
        >>> before = deepcopy(network.state_dict())
        >>> few = DigitsData(classes=range(5, 10), training=100, batch_size=16)
        >>> probe = Freeze(params=("network.stem", "network.groups"), dropout="off")
        >>> trainer = Trainer(max_epochs=10, check_val_every_n_epoch=10, callbacks=[probe], **QUIET)
        >>> trainer.fit(DigitsClassifier(network, classes=5, lr=0.2), few)
        Freeze
        | part                         | learns | tensors | parameters |
        |------------------------------|--------|---------|------------|
        | network.stem, network.groups | no     |      16 |      4,920 |
        | all else                     | yes    |       2 |         85 |
        >>> bool(trainer.callback_metrics["val_accuracy"] > 0.5)
        True

        The frozen part is as it was, to the bit and with the running statistics of BatchNorm; only the head
        has moved. The optimizer kept momentum for the head's two tensors alone, and after the run all is free
        again:

        >>> [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
        ['head.weight', 'head.bias']
        >>> len(trainer.optimizers[0].state)
        2
        >>> all(parameter.requires_grad for parameter in network.parameters())
        True

        Parts are also told by position, and may stop later: here all groups but the last, at half of the run.
        For LightningCLI that is:

        >>> print(to_yaml(Freeze(params=("network.stem", "network.groups[:-1]"), at="50%")), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.Freeze
            init_args:
              params:
              - network.stem
              - network.groups[:-1]
              at: 50%
              norm_stats: frozen
              dropout: 'on'
    """

    params: Patterns
    at: int | str = 0
    norm_stats: Literal["frozen", "train"] = "frozen"
    dropout: Literal["on", "off"] = "on"
    _moment: Duration = field(default_factory=lambda: as_duration("at", 0), init=False, repr=False)
    _chosen: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _trainable: Trainable = field(default_factory=Trainable, init=False, repr=False)
    _found: bool = field(default=False, init=False, repr=False)
    _frozen: bool = field(default=False, init=False, repr=False)
    _between_steps: bool = field(default=True, init=False, repr=False)
    _size: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        as_patterns("params", self.params)
        self._moment = as_duration("at", self.at)
        checks.one_of("norm_stats", self.norm_stats, NORM_STATS)
        checks.one_of("dropout", self.dropout, DROPOUT)

    def attach(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._found = False

    def read_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        entry = unsealed(checkpoint, self.state_key)
        self._found = entry is not None and entry["state"]["frozen"]

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._chosen = select(pl_module, self.params)
        check_initialised(self._chosen, name="params")
        self._size = sum(parameter.numel() for parameter in self._chosen.values())
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        check_left(trainer.optimizers, self._chosen, self.params, scaled=scaled)

    def claims(self) -> Iterable[Claim]:
        # Slow weights of another technique go on moving what stops on the way.
        slots = ("requires_grad", "weights") if self._moment.amount else ("requires_grad",)
        return [self.claim(slot, self._chosen) for slot in slots]

    def regroup(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainable.take(self, trainer, pl_module, self._chosen.values(), self._as_found)
        if self._found or self._frozen or not self._moment.amount:
            self._trainable.freeze()

    def _as_found(self) -> None:
        self._trainable.free()
        if self._found:
            self._trainable.freeze()

    def restore(self, state: dict[str, Any]) -> None:
        self._frozen = state["frozen"]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        policies = {"norm_stats": self.norm_stats, "dropout": self.dropout}
        self._trainable.look_after(frozen_layers(pl_module, set(self._chosen.values()), **policies))
        self._between_steps = True
        if self._frozen or self.clock.reached(self._moment):
            self._freeze(trainer)
        elif late := self.clock.too_late(self._moment, for_steps=True):
            warn(trainer, f"{self.state_key}: {late}")
        learns = "no" if self._frozen else f"until {self._moment}"
        rows = _rows(pl_module, self._chosen, self.params, learns)
        say(trainer, text_table(self.state_key, _COLUMNS, rows))

    def _freeze(self, trainer: Trainer) -> None:
        self._trainable.freeze()
        forget_(trainer.optimizers, self._chosen.values())
        self._trainable.follow(self, trainer)
        self._frozen = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._between_steps and not self._frozen and self.clock.reached(self._moment):
            self._freeze(trainer)
        self.report(trainer, pl_module, frozen=self._size * self._frozen)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._between_steps = self.clock.attempted

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._frozen:
            warn(
                trainer,
                f"{self.state_key}: at should come within the run to freeze anything, got {self.at!r}",
            )

    def undo(self) -> None:
        self._trainable.give_back(self)

    def outcome(self) -> dict[str, float | int | str]:
        return {"frozen": self._size * self._frozen}

    def saved(self) -> dict[str, Any]:
        return {"frozen": self._frozen}
