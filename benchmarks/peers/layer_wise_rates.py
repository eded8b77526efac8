"""Rates that fall by half from layer to layer towards the input, with a schedule beside them.

Judged by the rates in the optimizer after the run's first epoch: the first of three layers must learn at a
quarter of the last one's.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.parts import cut, without_its_door
from benchmarks.peers.small import Net, fitted

QUESTION = "Beside a schedule, do layers learn at the rates that layer-wise decay gives them?"
DECAY = 0.5


class Layers(nn.Sequential):
    """Says which of its parameters are in which layer, as timm's models do."""

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return an expression for the layer's number."""
        return {"blocks": r"^(\d+)"}


class Deep(Net):
    """Three layers."""

    def __init__(self) -> None:
        """Make them."""
        super().__init__()
        del self.backbone, self.head
        self.layers = Layers(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        return self.layers(inputs)


class Ours(lt.OptimizerMixin, Deep):
    """By a description."""

    optimizer_settings = lt.OptimizerSettings("SGD", lr=0.1, layer_decay=DECAY)


class Timms(Deep):
    """https://huggingface.co/docs/timm/reference/optimizers: groups by layer, with a scheduler of torch's."""

    def configure_optimizers(self) -> Any:
        """Return both."""
        given = {"re": re, "chain": itertools.chain, "defaultdict": defaultdict, "deepcopy": copy.deepcopy}
        names = ("group_parameters", "group_with_matcher")
        models = cut("timm", "timm/models/_manipulate.py", *names, MATCH_PREV_GROUP=(99999,), **given)
        names = ("param_groups_layer_decay", "_matches_pattern")
        given = {"group_parameters": models["group_parameters"]}
        layer_decay = cut("timm", "timm/optim/_param_groups.py", *names, **given)["param_groups_layer_decay"]
        groups = layer_decay(self.layers, weight_decay=0.0, layer_decay=DECAY)
        optimizer = torch.optim.SGD(groups, lr=0.1)
        return [optimizer], [self.scheduler(optimizer)]

    def scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """Return torch's."""
        return CosineAnnealingLR(optimizer, T_max=3)


class TimmsOwn(Timms):
    """With timm's scheduler, stepped as Lightning's documentation of ``lr_scheduler_step`` has it."""

    def scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """Return timm's."""
        without_its_door("timm")
        from timm.scheduler import CosineLRScheduler

        return CosineLRScheduler(optimizer, t_initial=3)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step by the epoch."""
        scheduler.step(epoch=self.current_epoch + 1)


def asked(module: Deep, *callbacks: Any) -> Verdict:
    """Compare the rates of the first and the last layer."""
    fitted(*callbacks, module=module, max_epochs=1)
    groups = module.optimizers().param_groups
    first, last = (
        next(group["lr"] for group in groups if any(p is layer.weight for p in group["params"]))
        for layer in (module.layers[0], module.layers[2])
    )
    return judged(
        abs(first / last / DECAY**2 - 1) < 1e-6, f"the first layer's rate is {first / last:.2f} of the last's"
    )


CASES = [
    Case("`OptimizerMixin` and `WarmupCosine`", lambda: asked(Ours(), lt.WarmupCosine(final=0.1))),
    Case("timm `param_groups_layer_decay` and torch's `CosineAnnealingLR`", lambda: asked(Timms()), "timm"),
    Case("timm `param_groups_layer_decay` and timm's `CosineLRScheduler`", lambda: asked(TimmsOwn()), "timm"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
