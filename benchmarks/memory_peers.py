"""What users of other libraries write for what memory is measured of.

A peer is used as its own documentation has it, by a callback where it has none: kept from the first batch on,
moved after each step, and evaluated in each validation.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from benchmarks.memory_runs import Network, TwoLosses, rows, sgd
from benchmarks.peers.beside import Beside, Kind, Within
from benchmarks.peers.parts import cut

__all__ = [
    "KEPT",
    "Avalanches",
    "Copies",
    "Evaluated",
    "Mean",
    "PostHoc",
    "Switching",
    "TorchJDs",
    "composers_clipping",
    "lookahead_of_timm",
    "sam_of_composer",
    "schedule_free",
    "timms_clipping",
]

KEPT = 10
"""Sets of weights that a mean of the last ones is of."""


class Clipping(Callback):
    """Calls a function of the parameters before each step."""

    def __init__(self, clip: Callable[[list[nn.Parameter]], object]) -> None:
        """Take it."""
        self.clip = clip

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.clip(list(pl_module.parameters()))


def timms_clipping() -> Callback:
    """Return timm's adaptive clipping."""
    names = ("adaptive_clip_grad", "unitwise_norm")
    return Clipping(cut("timm", "timm/utils/agc.py", *names, torch=torch)["adaptive_clip_grad"])


def composers_clipping() -> Callback:
    """Return Composer's."""
    names = ("_apply_agc", "_get_clipped_gradient_coeff", "_unitwise_norm")
    file = "composer/algorithms/gradient_clipping/gradient_clipping.py"
    clip = cut("mosaicml", file, *names, torch=torch)["_apply_agc"]
    return Clipping(partial(clip, clipping_threshold=0.01))


class Evaluated(Beside):
    """An average beside the run that validations see: a module of its own, or values that are put in."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if hasattr(self.kind.average, "copy_to"):
            self.kind.average.store(pl_module.parameters())
            self.kind.average.copy_to(pl_module.parameters())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if hasattr(self.kind.average, "copy_to"):
            self.kind.average.restore(pl_module.parameters())


class Mean(Kind):
    """torch's mean of snapshots."""

    def begin(self, module: nn.Module, decay: float, **options: Any) -> Any:
        return AveragedModel(module)


class Copies(Callback):
    """The last ``KEPT`` sets of weights, and their mean in validations."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.copies: deque[dict[str, Tensor]] = deque(maxlen=KEPT)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.copies.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.live = {name: value.clone() for name, value in pl_module.state_dict().items()}
        for name, value in pl_module.state_dict().items():
            value.copy_(sum(copy[name] for copy in self.copies) / len(self.copies))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.load_state_dict(self.live)
        del self.live


class PostHoc(Callback):
    """https://github.com/lucidrains/ema-pytorch#usage, with the widths of the paper."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from ema_pytorch import PostHocEMA

        settings = {"update_every": 1, "checkpoint_every_num_steps": 2, "checkpoint_folder": "post_hoc"}
        self.keep = PostHocEMA(Within(pl_module), sigma_rels=(0.05, 0.10), **settings)

    def on_train_batch_end(self, *_: Any) -> None:
        self.keep.update()


def lookahead_of_timm(module: nn.Module) -> torch.optim.Optimizer:
    """Return timm's."""
    wrapped = cut(
        "timm",
        "timm/optim/lookahead.py",
        "Lookahead",
        torch=torch,
        Optimizer=torch.optim.Optimizer,
        OrderedDict=dict,
        defaultdict=defaultdict,
    )["Lookahead"]
    return wrapped(sgd(module), k=2)


def sam_of_composer(module: nn.Module) -> torch.optim.Optimizer:
    """Return Composer's; its closure takes arguments for logs and for several processes."""
    base = cut("mosaicml", "composer/algorithms/sam/sam.py", "SAMOptimizer", torch=torch)["SAMOptimizer"]

    class Optimizer(base):
        def step(self, closure: Callable[[], Any]) -> Any:
            return super().step(lambda **_: closure())

    return Optimizer(sgd(module))


def schedule_free(module: nn.Module) -> torch.optim.Optimizer:
    """Return SGD of the package."""
    from schedulefree import SGDScheduleFree

    return SGDScheduleFree(module.parameters(), lr=1e-4)


class Switching(Callback):
    """https://github.com/facebookresearch/schedule_free#how-to-use: ``eval()`` before validation."""

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        trainer.optimizers[0].train()

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        trainer.optimizers[0].eval()

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.optimizers[0].train()


class Avalanches(Network):
    """Elastic weight consolidation by Avalanche's plugin: after a task, and at each loss of the next."""

    def __init__(self, width: int) -> None:
        """Find the plugin."""
        super().__init__(width)
        file = "avalanche/training/utils.py"
        names = ("ParamData", "zerolike_params_dict", "copy_params_dict")
        parts = cut("avalanche-lib", file, *names, torch=torch)
        self.copied = parts["copy_params_dict"]
        given = {
            "torch": torch,
            "SupervisedPlugin": object,
            "DataLoader": DataLoader,
            "defaultdict": defaultdict,
        }
        given |= {"zerolike_params_dict": parts["zerolike_params_dict"]}
        given |= {"avalanche_forward": lambda module, x, _: module(x)}
        file = "avalanche/training/plugins/ewc.py"
        self.plugin = cut("avalanche-lib", file, "EWCPlugin", **given)["EWCPlugin"](ewc_lambda=1.0)

    def on_train_start(self) -> None:
        """Do what the plugin does after a task."""
        optimizer, data = self.trainer.optimizers[0], rows(self.head.in_features)
        found = self.plugin.compute_importances(
            self, nn.CrossEntropyLoss(), optimizer, data.dataset, "cpu", data.batch_size
        )
        self.plugin.update_importances(found, 0)
        self.plugin.saved_params[0] = self.copied(self)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss with its penalty."""
        strategy = _Strategy(self, super().training_step(batch, batch_idx))
        self.plugin.before_backward(strategy)
        return strategy.loss


@dataclass
class _Strategy:
    """What the plugin asks of what trains, in the second task."""

    model: nn.Module
    loss: Tensor
    device: str = "cpu"

    class clock:  # noqa: N801 - the plugin's name
        train_exp_counter = 1


class TorchJDs(TwoLosses):
    """https://torchjd.org/stable/examples/lightning_integration, with PCGrad."""

    def __init__(self, width: int) -> None:
        """Optimize by hand."""
        super().__init__(width)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Make a gradient of both."""
        from torchjd.aggregation import PCGrad
        from torchjd.autojac import backward, jac_to_grad

        optimizer = self.optimizers()
        backward([*self.losses(batch)])
        jac_to_grad(self.parameters(), PCGrad())
        optimizer.step()
        optimizer.zero_grad()
