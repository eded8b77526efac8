"""Averages of other packages, used in a Lightning run as their own documentation uses them in a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.peers.parts import without_its_door

__all__ = ["KINDS", "Beside", "Kind", "Within"]


class Within(nn.Module):
    """The two parts of a network, which each of the packages can copy; a LightningModule is more."""

    def __init__(self, module: LightningModule) -> None:
        """Share the parts of ``module``."""
        super().__init__()
        self.backbone, self.head = module.backbone, module.head


class Kind:
    """torch's, https://docs.pytorch.org/docs/stable/optim.html#weight-averaging-swa-and-ema."""

    def __init__(self, module: nn.Module, decay: float, **options: Any) -> None:
        """Begin an average of ``module``."""
        self.average: Any = self.begin(module, decay, **options)

    def begin(self, module: nn.Module, decay: float, **options: Any) -> Any:
        """Return what keeps it."""
        return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), **options)

    def update(self, module: nn.Module, step: int) -> None:
        """Move it, after the ``step``-th step."""
        self.average.update_parameters(module)

    def values(self) -> dict[str, torch.Tensor]:
        """Return the average, by the names of ``module``."""
        return dict(self.average.module.state_dict())


class EMAPytorchs(Kind):
    """https://github.com/lucidrains/ema-pytorch#usage; ``min_value`` for a decay that stays."""

    def begin(self, module: nn.Module, decay: float, **options: Any) -> Any:
        from ema_pytorch import EMA

        return EMA(
            module, beta=decay, **{"min_value": decay, "update_every": 1, "update_after_step": 0, **options}
        )

    def update(self, module: nn.Module, step: int) -> None:
        self.average.update()

    def values(self) -> dict[str, torch.Tensor]:
        return dict(self.average.ema_model.state_dict())


class Timms(Kind):
    """As timm's own ``train.py`` uses it."""

    def begin(self, module: nn.Module, decay: float, **options: Any) -> Any:
        without_its_door("timm", "timm.utils")
        from timm.utils.model_ema import ModelEmaV3

        return ModelEmaV3(module, decay=decay, **options)

    def update(self, module: nn.Module, step: int) -> None:
        self.average.update(module, step=step)

    def values(self) -> dict[str, torch.Tensor]:
        return dict(self.average.module.state_dict())


class OfParameters(Kind):
    """What keeps a list of averages of parameters, and nothing of buffers."""

    def update(self, module: nn.Module, step: int) -> None:
        self.module = module
        self.average.update()

    def values(self) -> dict[str, torch.Tensor]:
        names = dict(self.module.named_parameters())
        return {**self.module.state_dict(), **dict(zip(names, self.average.shadow_params, strict=True))}


class TorchEMAs(OfParameters):
    """https://github.com/fadel/pytorch_ema#example; ``use_num_updates`` off, for a decay that stays."""

    def begin(self, module: nn.Module, decay: float, **options: Any) -> Any:
        from torch_ema import ExponentialMovingAverage

        return ExponentialMovingAverage(module.parameters(), decay, use_num_updates=False)


class Diffusers(OfParameters):
    """As diffusers' training scripts use it; ``min_decay`` for a decay that stays."""

    def begin(self, module: nn.Module, decay: float, **options: Any) -> Any:
        from diffusers.training_utils import EMAModel

        return EMAModel(module.parameters(), **{"decay": decay, "min_decay": decay, **options})

    def update(self, module: nn.Module, step: int) -> None:
        self.module = module
        self.average.step(module.parameters())


KINDS: dict[str, tuple[str, type[Kind]]] = {
    "torch `AveragedModel`": ("torch", Kind),
    "timm `ModelEmaV3`": ("timm", Timms),
    "ema-pytorch `EMA`": ("ema-pytorch", EMAPytorchs),
    "torch_ema": ("torch-ema", TorchEMAs),
    "diffusers `EMAModel`": ("diffusers", Diffusers),
}


class Beside(Callback):
    """Keeps an average beside a run: updates after steps, state into checkpoints, values in at the end."""

    def __init__(self, kind: Callable[..., Kind], decay: float, **options: Any) -> None:
        """Take what is begun as the run begins."""
        self.begin = lambda module: kind(module, decay, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.module = Within(pl_module)
        self.kind, self.step = self.begin(self.module), 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step != self.step:  # else a micro-batch
            self.step = trainer.global_step
            self.kind.update(self.module, self.step)

    def on_train_end(self, *_: Any) -> None:
        self.module.load_state_dict(self.kind.values())

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.kind.average.state_dict(), "steps": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["steps"]
        self.kind.average.load_state_dict(state["average"])
