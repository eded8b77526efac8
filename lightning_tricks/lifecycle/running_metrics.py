"""Metrics that are still being gathered: what Lightning and torchmetrics forget when a run is broken off.

Lightning keeps the running mean of each logged value, and each ``torchmetrics.Metric`` its own counts, until
the end of the epoch; neither is in a checkpoint. All states here are tensors on the CPU and plain values.
"""

from __future__ import annotations

import builtins
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torchmetrics import Metric

__all__ = ["restore_metrics", "saved_metrics"]

_META = (
    "fx",
    "name",
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "dataloader_idx",
    "metric_attribute",
)
_SHOWN = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")


def saved_metrics(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return what this process has gathered of the epoch's metrics, and those it showed last."""
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    # Those of a validation are reset when it ends, after the hook in which checkpoints are written.
    ended = [result.value for result in loop.val_loop._results.values() if not result.is_tensor]
    state = {
        "means": {
            key: _saved_mean(mean)
            for key, mean in loop._results.items()
            if not mean.has_reset and mean.meta.sync.group is None
        },
        "metrics": {
            name: {"states": metric._copy_state_dict(), "updates": metric._update_count}
            for name, metric in _metrics(pl_module).items()
            if metric._update_count and not any(metric is other for other in ended)
        },
        "shown": {name: dict(getattr(connector, name)) for name in _SHOWN},
    }
    return dict(apply_to_collection(state, Tensor, lambda tensor: tensor.detach().cpu().clone()))


def restore_metrics(trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]) -> None:
    """Take back what :func:`saved_metrics` returned."""
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    state = apply_to_collection(state, Tensor, lambda tensor: tensor.to(pl_module.device))
    metrics = _metrics(pl_module)
    for name in metrics.keys() & state["metrics"].keys():
        saved = state["metrics"][name]
        vars(metrics[name]).update(saved["states"], _update_count=saved["updates"], _computed=None)
    for key, saved in state["means"].items():
        if saved["is_tensor"] or saved["meta"]["metric_attribute"] in metrics:
            loop._results[key] = _mean(trainer, saved, metrics)
    for name, shown in state["shown"].items():
        setattr(connector, name, shown)


def _metrics(pl_module: LightningModule) -> dict[str, Metric]:
    return {name: part for name, part in pl_module.named_modules() if isinstance(part, Metric)}


def _saved_mean(mean: _ResultMetric) -> dict[str, Any]:
    meta, states = mean.meta, {"_forward_cache": mean._forward_cache, "_update_count": mean._update_count}
    if mean.is_tensor:
        states |= mean._copy_state_dict()
    return {
        "meta": {name: getattr(meta, name) for name in _META},
        "reduction": [meta.reduce_fx.__name__, meta.reduce_fx.__module__ == builtins.__name__],
        "is_tensor": mean.is_tensor,
        "sync": {"_should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only},
        "states": {name: value for name, value in states.items() if isinstance(value, Tensor | int)},
    }


def _mean(trainer: Trainer, saved: dict[str, Any], metrics: dict[str, Metric]) -> _ResultMetric:
    # Equal to what the next call of ``log`` would make, or Lightning took it for another use of the name.
    name, builtin = saved["reduction"]
    meta = _Metadata(**saved["meta"], reduce_fx=getattr(builtins if builtin else torch, name))
    meta.sync = _Sync(fn=trainer.strategy.reduce, **saved["sync"])
    mean = _ResultMetric(meta, is_tensor=saved["is_tensor"])
    vars(mean).update(saved["states"])
    if not mean.is_tensor:
        mean.value = metrics[saved["meta"]["metric_attribute"]]
    return mean
