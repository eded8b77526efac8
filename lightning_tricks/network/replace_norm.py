"""Replacing normalisation layers, with the weights that mean the same.

    batch       over the samples of a batch, per channel;   mean and variance of the batch, or running ones
    group       over a group of channels, per sample        layer: all of them; instance: each by itself
    rms         x / sqrt(mean(x ** 2) + eps) * weight       layer normalisation without mean and bias

Layers change before optimizers exist and before a checkpoint loads: by the technique in each run, or by
:func:`replace_norm_` where a module makes its layers.

References: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift", 2015, https://arxiv.org/abs/1502.03167; Wu and He, "Group Normalization", 2018,
https://arxiv.org/abs/1803.08494; Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019,
https://arxiv.org/abs/1910.07467.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, final

from torch import nn

from lightning_tricks.core import checks
from lightning_tricks.core.select import Patterns, as_patterns, select_layers
from lightning_tricks.lifecycle.notice import say
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.network.norm_layers import TARGETS, Replaced, is_norm, is_replaced, replacement_of
from lightning_tricks.network.surgery import check_unwrapped

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["ReplaceNorm", "replace_norm_"]

_GROUPS = 32
_COLUMNS: dict[str, Literal["left", "right"]] = dict.fromkeys(
    ("layer", "was", "is", "handed on", "dropped"), "left"
)


def replace_norm_(
    module: nn.Module, *, to: str, params: Patterns = "*", groups: int | None = None
) -> list[Replaced]:
    """Replace normalisation layers within ``module``, and return what became of each.

    A layer that stands in several places is replaced by one layer. Those that are already as wanted are left
    alone. If one cannot be replaced, none is.

    Args:
        module: Holds the layers; not one itself.
        to: ``"group"``, ``"layer"``, ``"instance"``, ``"frozen_batch"`` or ``"sync_batch"`` for BatchNorm,
            ``"rms"`` for LayerNorm.
        params: Patterns of the layers, by their names or types, or the names of what holds them.
        groups: Of channels, for ``"group"``; ``None`` for 32.

    Raises:
        ValueError: If a pattern matches no such layer; a layer is a subclass of torch's own, lazy, has hooks
            or cannot become what is wanted; or ``module`` is already wrapped or sharded.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64))
        >>> [(each.name, each.after) for each in replace_norm_(net, to="group")]
        [('1', 'GroupNorm(32, 64)')]
    """
    check_settings(to, params, groups)
    number = groups or _GROUPS

    def wanted(layer: nn.Module) -> bool:
        return layer is not module and (is_norm(layer, to=to) or is_replaced(layer, to=to, groups=number))

    layers = select_layers(module, params, wanted, what="a LayerNorm" if to == "rms" else "a BatchNorm")
    former = {layer: name for name, layer in layers.items() if not is_replaced(layer, to=to, groups=number)}
    if former:
        check_unwrapped(module, former, "replace_norm_(self, to=...)")
        _check_compiled(module, former)
    after = {layer: replacement_of(layer, name=name, to=to, groups=number) for layer, name in former.items()}
    for holder in module.modules():
        for key, child in holder._modules.items():
            if child in after:
                holder._modules[key] = after[child]
    if to == "rms":
        _leave_fast_path(module)
    return [_told(name, layer, after[layer]) for layer, name in former.items()]


def check_settings(to: object, params: object, groups: object) -> None:
    """Accept what :func:`replace_norm_` takes."""
    checks.one_of("to", to, TARGETS)
    as_patterns("params", params)
    if groups is not None and to != "group":
        raise ValueError(f"groups must be None unless to is 'group', got {groups!r} with {to!r}")
    if groups is not None:
        checks.whole("groups", groups, 1)


def _check_compiled(module: nn.Module, layers: dict[nn.Module, str]) -> None:
    for holder in module.modules():
        alone = holder._modules.get("_orig_mod")
        if alone in layers:
            raise ValueError(
                f"layers must be replaced before they are compiled, got {layers[alone]!r}, compiled by itself"
            )


def _leave_fast_path(module: nn.Module) -> None:
    """Keep torch's encoders from their fused inference, which takes their norms for LayerNorm."""
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoderLayer) and not isinstance(part.norm1, nn.LayerNorm):
            part.activation_relu_or_gelu = 0
        elif isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor &= all(
                isinstance(getattr(layer, "norm1", None), nn.LayerNorm) for layer in part.layers
            )


def _told(name: str, before: nn.Module, after: nn.Module) -> Replaced:
    own, theirs = after.state_dict(), before.state_dict()
    carried = tuple(key for key in theirs if key in own)
    dropped = tuple(key for key in theirs if key not in own)
    kind = type(after).__name__
    if isinstance(after, nn.GroupNorm):
        kind = f"GroupNorm({after.num_groups}, {after.num_channels})"
    return Replaced(name, type(before).__name__, kind, carried, dropped)


@final
@dataclass(eq=False, repr=False, kw_only=True)
class ReplaceNorm(Technique):
    """Replace normalisation layers, with the weights that mean the same (:func:`replace_norm_`).

    BatchNorm becomes group, layer, instance, frozen or synchronised normalisation, LayerNorm becomes RMSNorm;
    ``replace_norm_`` does it in a module's ``__init__``.

    * **When** in each run, evaluations too, once the module has made its layers: before a checkpoint loads
      and before there are optimizers. What has been replaced is left alone from then on, after the run too.
    * **Changes** layers. ``"frozen_batch"`` and ``"sync_batch"`` give to the bit what the BatchNorm gave in
      eval mode, under the same names in checkpoints, so that those of before load. The others compute
      something else: ``weight`` and ``bias`` are handed on, running statistics are dropped (``"rms"`` keeps
      the weight alone), so a trained network has to be trained further, and a checkpoint of before loads no
      more: let the module load it in its ``__init__``, or train from scratch.
    * **Logs** nothing; prints a table of what was replaced by what, and what was handed on.
    * **Saves** nothing. ``load_from_checkpoint`` without a Trainer knows of no technique: call
      :func:`replace_norm_` at the end of ``__init__`` for it, which is all that is needed then.
    * **Cost** once a walk through the module. A GroupNorm is slower than a BatchNorm in evaluation. With
      ``"rms"`` torch's TransformerEncoderLayer goes without its fused inference.
    * **Use** ``"group"`` for images at fewer than 16 samples a device, ``"layer"`` (over channels and
      places) for small networks and signals, ``"instance"`` for style transfer, ``"frozen_batch"`` to
      fine-tune at small batches, ``"sync_batch"`` for small batches on many GPUs, ``"rms"`` for large
      transformers; **not** over weights that FSDP2 or DDP has taken in ``configure_model`` (refused: call
      the function there, before), ``"group"`` or ``"instance"`` where a group has one value to normalise, as
      behind linear layers (refused in the forward pass), nor for layers that are more than torch's own
      (refused), such as timm's ``BatchNormAct2d``, whose activation would be lost.

    Args:
        to: ``"group"``, ``"layer"``, ``"instance"`` (a GroupNorm of that many groups), ``"frozen_batch"``
            or ``"sync_batch"`` for BatchNorm, ``"rms"`` for LayerNorm.
        params: Patterns of the layers, by their names or types, or the names of what holds them.
        groups: Of channels, for ``"group"``; ``None`` for 32.

    Example:
        A small residual network with BatchNorm learns 1,500 handwritten digits. ``DigitsClassifier`` trains
        any network on them by cross entropy and SGD; with ``QUIET`` the Trainer shows no bars and writes no
        files.

        >>> from copy import deepcopy
        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from lightning_tricks import ReplaceNorm, to_yaml
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> from lightning_tricks.recipes.residual import ResidualNet
        >>> _ = torch.manual_seed(0)
        >>> model = DigitsClassifier(ResidualNet(widths=(8, 16)))
        >>> data = DigitsData(training=1500, batch_size=32)
        >>> Trainer(max_epochs=1, **QUIET).fit(model, data)
        >>> before = torch.cat(Trainer(**QUIET).predict(model, data))

        At small batches statistics had better stay as they are, or be those of all devices. The table tells
        for each layer what it became, and what of its weights went on; predictions are the same to the bit:

        >>> for to in ("frozen_batch", "sync_batch"):
        ...     exact = ReplaceNorm(to=to)
        ...     after = torch.cat(Trainer(callbacks=[exact], **QUIET).predict(deepcopy(model), data))
        ...     print(torch.equal(after, before))
        ReplaceNorm: layers replaced: 5
        | layer                       | was         | is              | handed on ...
        ...
        | network.groups.0.0.first.1  | BatchNorm2d | FrozenBatchNorm | weight, bias, running_mean, ...
        ...
        True
        ReplaceNorm: layers replaced: 5
        ...
        | network.groups.0.0.first.1  | BatchNorm2d | SyncBatchNorm | weight, bias, running_mean, ...
        ...
        True

        A GroupNorm takes weight and bias over, but normalises by each image's own statistics. That is another
        function: most images are mistaken for others, and the network has to be trained on with it.

        >>> group = ReplaceNorm(to="group", groups=8)
        >>> trainer = Trainer(max_epochs=1, callbacks=[group], **QUIET)
        >>> after = torch.cat(trainer.predict(model, data))
        ReplaceNorm: layers replaced: 5
        | layer                       | was         | is               | handed on    | dropped ...
        ...
        | network.groups.1.0.first.1  | BatchNorm2d | GroupNorm(8, 16) | weight, bias | running_mean, ...
        ...
        >>> round((after - before).abs().max().item(), 1)
        0.9
        >>> labels = data.val_set.tensors[1]
        >>> [bool((each.argmax(dim=1) == labels).float().mean() > 0.4) for each in (before, after)]
        [True, False]
        >>> trainer.fit(model, data)
        >>> bool(trainer.callback_metrics["val_accuracy"] > 0.4)
        True

        The same for LightningCLI, with all settings there are:

        >>> print(to_yaml(group), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.ReplaceNorm
            init_args:
              to: group
              params: '*'
              groups: 8
    """

    to: Literal["group", "layer", "instance", "rms", "frozen_batch", "sync_batch"]
    params: Patterns = "*"
    groups: int | None = None
    _replaced: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        check_settings(self.to, self.params, self.groups)

    def build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        on_cpu = trainer.strategy.root_device.type == "cpu"
        if self.to == "sync_batch" and trainer.world_size > 1 and on_cpu:
            raise ValueError(f"to must be one that torch has on several CPUs, got {self.to!r}")
        found = replace_norm_(pl_module, to=self.to, params=self.params, groups=self.groups)
        self._replaced += len(found)
        if found:
            rows = [
                (each.name, each.before, each.after, ", ".join(each.carried), ", ".join(each.dropped))
                for each in found
            ]
            say(trainer, text_table(f"{self.state_key}: layers replaced: {len(found)}", _COLUMNS, rows))

    def claims(self) -> Iterable[Claim]:
        return []

    def outcome(self) -> dict[str, float | int | str]:
        return {"replaced": self._replaced}
