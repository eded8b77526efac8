"""Spectral normalisation: weights divided by their largest singular value.

    W <- W / sigma,    sigma = u^T W v,    v <- W^T u / |W^T u|,    u <- W v / |W v|

by ``n_power_iterations`` of the last line in each forward pass of training. ``W`` is a weight as a matrix,
its output axis first.

Reference: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018,
https://arxiv.org/abs/1802.05957, algorithm 1, as torch's
``torch.nn.utils.parametrizations.spectral_norm`` has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm, spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from lightning_tricks.core import checks
from lightning_tricks.core.checks import listed
from lightning_tricks.core.select import Patterns, as_patterns, select_layers
from lightning_tricks.lifecycle.notice import say
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.network.surgery import check_unwrapped, seeded

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["SpectralNorm", "spectral_norm_"]

_MATRICES = (nn.Linear, nn.Bilinear, nn.Embedding, _ConvNd)


def spectral_norm_(
    module: nn.Module, *, params: Patterns = "*", n_power_iterations: int = 1, seed: int = 0
) -> list[str]:
    """Normalise the weights of layers within ``module`` from now on, and return the names of the layers.

    Those that are already normalised so are left alone. If one cannot be, none is.

    Args:
        module: Holds the layers, or is one.
        params: Patterns of the layers, by their names or types, or the names of what holds them.
        n_power_iterations: In each forward pass of training, at least 1.
        seed: Of the vectors to begin with, at least 0: the same in all processes. Random numbers of others
            stay as they are.

    Raises:
        ValueError: If a pattern matches no layer with a matrix (linear, convolution, embedding); the weight
            of one is lazy, zero, another layer's too, or reparametrized otherwise; or ``module`` is already
            wrapped or sharded.

    Example:
        >>> spectral_norm_(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
        ['0']
    """
    layers = select_layers(
        module, params, lambda layer: isinstance(layer, _MATRICES), what="a layer with a weight matrix"
    )
    owners = Counter(layer._parameters.get("weight") for layer in module.modules())
    fresh = {name: layer for name, layer in layers.items() if not _check(layer, name, owners)}
    if fresh:
        check_unwrapped(module, fresh.values(), "spectral_norm_(self)")
    with seeded(seed, (p.device for layer in fresh.values() for p in layer.parameters())):
        for layer in fresh.values():
            spectral_norm(layer, n_power_iterations=n_power_iterations)
    return list(fresh)


def _check(layer: nn.Module, name: str, owners: Mapping[nn.Parameter | None, int]) -> bool:
    """Return whether the weight of ``layer`` is already normalised so; refuse what cannot be.

    Args:
        layer: The layer.
        name: Its name.
        owners: How many layers have each weight.
    """
    if is_parametrized(layer, "weight"):
        chain: Any = layer.parametrizations["weight"]  # type: ignore[index]  # torch leaves it untyped
        kinds = [type(each).__name__ for each in chain]
        if not any(isinstance(each, _SpectralNorm) for each in chain):
            raise ValueError(f"params must match weights as they are, got {name!r}, made by {listed(kinds)}")
        return True
    weight = layer._parameters.get("weight")
    if weight is None:
        raise ValueError(f"params must match weights as they are, got {name!r}, made by a hook")
    if is_lazy(weight):
        raise ValueError(f"params must match initialised layers, got the lazy {name!r}: run one batch first")
    if owners[weight] > 1:
        raise ValueError(
            f"params must match weights of one layer, got {name!r}, whose weight is another's too"
        )
    if not isinstance(weight, DTensor) and not weight.is_meta and not weight.any():
        raise ValueError(
            f"params must match weights that are not all zero, got {name!r}: there is no direction"
        )
    return False


@final
@dataclass(eq=False, repr=False, kw_only=True)
class SpectralNorm(Technique):
    """Divide weights by their largest singular value (:func:`spectral_norm_`).

    Torch's parametrization does it, which resumes and averages as all else.

    * **When** in each run, evaluations too, once the module has made its layers and after other surgery and
      first weights, before a checkpoint loads and before there are optimizers; then in each forward pass.
    * **Changes** layers: what learns is ``layer.parametrizations.weight.original`` (``params="layer.weight"``
      finds it still), and ``layer.weight`` is that divided by its norm, in evaluations too. Weights that
      already are so stay as they are.
    * **Logs** nothing; says which layers it has normalised.
    * **Saves** nothing by itself: the vectors of the power iteration are buffers of the module. A checkpoint
      of before does not load, as names change. ``load_from_checkpoint`` without a Trainer needs
      :func:`spectral_norm_` at the end of the module's ``__init__``, which is all that is needed then.
    * **Cost** two products of the weight with a vector per power iteration and forward pass, and the gradient
      through the division; two vectors of memory.
    * **Use** for the discriminator of a GAN, and where a Lipschitz constant matters; **not** over weights
      that another parametrization makes (refused), nor where FSDP2 or DDP has taken them in
      ``configure_model`` (refused: call the function there, before), nor on layers that a norm follows,
      which takes the scale out again.

    Args:
        params: Patterns of the layers, by their names or types, or the names of what holds them.
        n_power_iterations: In each forward pass of training, at least 1.
        seed: Of the vectors to begin with, at least 0.

    Example:
        Two layers in plain PyTorch learn 512 handwritten digits. ``DigitsClassifier`` trains any network on
        them by cross entropy and SGD; with ``QUIET`` the Trainer shows no bars and writes no files.

        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from torch import nn
        >>> from lightning_tricks import SpectralNorm, to_yaml
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> data = DigitsData(training=512, batch_size=32)
        >>> def trained(*techniques):
        ...     torch.manual_seed(0)
        ...     network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        ...     trainer = Trainer(max_epochs=3, callbacks=list(techniques), **QUIET)
        ...     trainer.fit(DigitsClassifier(network), data)
        ...     print("learned" if trainer.callback_metrics["val_accuracy"] > 0.7 else "still guesses")
        ...     return network.eval()

        How much longer a layer can make a vector is the largest singular value of its weight. Nothing holds
        it:

        >>> def largest(network):
        ...     return [round(torch.linalg.matrix_norm(network[i].weight, 2).item(), 1) for i in (1, 3)]
        >>> free = trained()
        learned
        >>> largest(free)
        [2.4, 2.4]

        With the technique it stays near 1, and the network learns as well. It is 1 for a weight that rests;
        one step of the power iteration in each batch lags behind a weight that moves:

        >>> spectral = SpectralNorm(n_power_iterations=1)
        >>> held = trained(spectral)
        SpectralNorm normalises the weights of 'network.1', 'network.3'
        learned
        >>> largest(held)
        [1.1, 1.1]

        So a small change of an image is a small change of its logits, as the critic of a GAN has to have it.
        We move each image at random; with the technique no logits move further than their image:

        >>> images, _ = data.val_set.tensors
        >>> noise = 0.1 * torch.randn_like(images)
        >>> def stretch(network):
        ...     moved = network(images + noise) - network(images)
        ...     return (moved.norm(dim=1) / noise.flatten(1).norm(dim=1)).max().item()
        >>> stretch(held) < 1.0 < stretch(free)
        True

        Of a GAN, the critic alone. For LightningCLI:

        >>> print(to_yaml(SpectralNorm(params="critic")), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.SpectralNorm
            init_args:
              params: critic
              n_power_iterations: 1
              seed: 0
    """

    build_order: ClassVar[int] = 2

    params: Patterns = "*"
    n_power_iterations: int = 1
    seed: int = 0
    _normalised: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        as_patterns("params", self.params)
        checks.whole("n_power_iterations", self.n_power_iterations, 1)
        checks.whole("seed", self.seed)

    def build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = spectral_norm_(
            pl_module, params=self.params, n_power_iterations=self.n_power_iterations, seed=self.seed
        )
        self._normalised += len(found)
        if found:
            say(trainer, f"{self.state_key} normalises the weights of {listed(found)}")

    def claims(self) -> Iterable[Claim]:
        return []

    def outcome(self) -> dict[str, float | int | str]:
        return {"normalised": self._normalised}
