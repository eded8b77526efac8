"""What users of other libraries call for an exponential moving average, to compare ours with."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import distribution
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from benchmarks.peers.parts import without_its_door
from benchmarks.shapes import Weights

__all__ = ["DECAY", "PEERS", "PEERS_IN_AND_OUT", "Network", "Update"]

DECAY = 0.999
Update = Callable[[], object]


class Network(LightningModule):
    """Weights that nothing changes, and one that an optimizer may step."""

    def __init__(self, weights: Weights) -> None:
        """Take the weights, which all variants share."""
        super().__init__()
        self.net, self.own = weights, torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return a loss that costs nothing."""
        return self.own.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer of the one weight."""
        return torch.optim.SGD([self.own], lr=0.1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return one batch without content."""
        return DataLoader(range(1))


def lightnings(weights: Weights) -> tuple[EMAWeightAveraging, Network]:
    """Return Lightning's callback, in a run that begins."""
    callback, network = EMAWeightAveraging(decay=DECAY), Network(weights)
    callback.setup(Trainer(accelerator="cpu", logger=False), network, "fit")
    return callback, network


def lightnings_update(weights: Weights) -> Update:
    """Return its update."""
    callback, network = lightnings(weights)
    average = callback._average_model
    assert average is not None
    return lambda: average.update_parameters(network)


def lightnings_in_and_out(weights: Weights) -> Update:
    """Return what it does before and after an evaluation."""
    callback, network = lightnings(weights)
    return lambda: (callback._swap_models(network), callback._swap_models(network))


def diffusers(weights: Weights) -> tuple[Any, list[torch.nn.Parameter]]:
    """Return that of diffusers with its foreach kernels."""
    distribution("diffusers")
    from diffusers.training_utils import EMAModel

    parameters = list(weights.parameters())
    return EMAModel(parameters, decay=DECAY, foreach=True), parameters


def diffusers_update(weights: Weights) -> Update:
    """Return its update."""
    average, parameters = diffusers(weights)
    return lambda: average.step(parameters)


def diffusers_in_and_out(weights: Weights) -> Update:
    """Return what its users call before and after an evaluation."""
    average, parameters = diffusers(weights)
    return lambda: (average.store(parameters), average.copy_to(parameters), average.restore(parameters))


def torchs(weights: Weights) -> Update:
    """Return that of torch's model with its function for many tensors."""
    average = AveragedModel(weights, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    return lambda: average.update_parameters(weights)


def timms(weights: Weights) -> Update:
    """Return that of timm, which needs torchvision to be imported as a whole."""
    without_its_door("timm", "timm.utils")
    from timm.utils.model_ema import ModelEmaV3

    average = ModelEmaV3(weights, decay=DECAY)
    return lambda: average.update(weights)


def ema_pytorchs(weights: Weights) -> Update:
    """Return that of ema-pytorch, by its foreach kernels."""
    distribution("ema-pytorch")
    from ema_pytorch import EMA

    settings = {"update_every": 1, "update_after_step": 0, "include_online_model": False}
    average = EMA(weights, beta=DECAY, use_foreach=True, **settings)
    return lambda: average.update()


# By their updates, and by what they do before and after an evaluation within training.
PEERS: dict[str, Callable[[Weights], Update]] = {
    "torch AveragedModel, multi_avg_fn": torchs,
    "timm ModelEmaV3": timms,
    "ema-pytorch EMA, foreach": ema_pytorchs,
    "diffusers EMAModel, foreach": diffusers_update,
    "Lightning EMAWeightAveraging": lightnings_update,
}
PEERS_IN_AND_OUT: dict[str, Callable[[Weights], Update]] = {
    "diffusers EMAModel, store, copy_to, restore": diffusers_in_and_out,
    "Lightning EMAWeightAveraging, in and out": lightnings_in_and_out,
}
