"""The networks of a GAN, who steps them, and which of them cannot go with which setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_tricks.core.checks import listed
from lightning_tricks.core.select import clean_name, select_layers
from lightning_tricks.objectives.critic_penalties import CriticPenalty
from lightning_tricks.objectives.gan_architecture import compiled
from lightning_tricks.objectives.gan_player import optimizer_of, parameters_of

__all__ = ["Players", "check_penalties", "check_samples", "made_by", "named_networks", "penalties_of"]


def named_networks(module: nn.Module, setting: str, names: str | Sequence[str]) -> dict[str, nn.Module]:
    """Return the networks of ``module`` that ``names``, the value of ``setting``, says, by name.

    Raises:
        ValueError: If there is none of a name, or one has no parameters.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise ValueError(f"{setting} must name at least one network, got {names!r}")
    found = {}
    for name in wanted:
        try:
            network = module.get_submodule(name)
        except AttributeError:
            known = [path for path, _ in module.named_children()]
            raise ValueError(
                f"{setting} must name networks of {type(module).__name__}, got {name!r}; it has "
                f"{listed(known) or 'none'}"
            ) from None
        if not any(True for _ in network.parameters()):
            raise ValueError(f"{setting} must name networks that can learn, got {name!r} without parameters")
        found[name] = network
    return found


def penalties_of(penalties: CriticPenalty | Sequence[CriticPenalty]) -> list[CriticPenalty]:
    """Return the setting ``penalties`` as a list.

    Raises:
        TypeError: If it holds anything else.
    """
    found: list[Any] = list(penalties) if isinstance(penalties, list | tuple) else [penalties]
    for each in found:
        if not isinstance(each, CriticPenalty):
            raise TypeError(f"penalties must be GradientPenalty, R1, R2 or several of them, got {each!r}")
    return found


@dataclass(frozen=True)
class Players:
    """Networks by name, and the place of each side's optimizer.

    Attributes:
        generators: Those that make samples.
        critics: Those that judge them.
        generator_at: Index of the optimizer of the generators.
        critic_at: That of the critics.
        noisy: Layers of the generators that get noise.
        batch_norm: Name of a BatchNorm among all; ``None`` if there is none.
        features: What samples are compared by.
        optimizers: Those of the run.
    """

    generators: dict[str, nn.Module]
    critics: dict[str, nn.Module]
    generator_at: int
    critic_at: int
    noisy: list[nn.Module]
    batch_norm: str | None
    features: Callable[[Tensor], Tensor]
    optimizers: Sequence[Optimizer]

    @classmethod
    def of(cls, module: Any, optimizers: Sequence[Optimizer]) -> Players:
        """Return those of ``module``, a LightningModule with GANMixin.

        Raises:
            ValueError: If they do not go with its settings or with ``optimizers``.
        """
        generators = named_networks(module, "generators", module.generators)
        critics = named_networks(module, "critics", module.critics)
        check_penalties(penalties_of(module.penalties), critics)
        noisy: list[nn.Module] = []
        if module.layer_noise is not None:
            if found := [name for name, network in generators.items() if compiled(network)]:
                raise ValueError(f"layer_noise must be None if generators are compiled, got {listed(found)}")
            parts = {part for network in generators.values() for part in network.modules()}
            layers = select_layers(
                module,
                module.layer_noise.layers,
                lambda part: part in parts and not any(part.children()),
                what="a layer of a generator",
                name="layers",
            )
            noisy = list(layers.values())
        norms = (
            clean_name(f"{name}.{path}")
            for name, network in (generators | critics).items()
            for path, part in network.named_modules()
            if isinstance(part, _BatchNorm)
        )
        return cls(
            generators,
            critics,
            optimizer_of("generators", parameters_of(generators.values()), optimizers),
            optimizer_of("critics", parameters_of(critics.values()), optimizers),
            noisy,
            next(norms, None),
            module.features,
            optimizers,
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All, by name."""
        return self.generators | self.critics

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the generators' inputs."""
        return next(next(iter(self.generators.values())).parameters())

    def name_of(self, optimizer: Optimizer) -> str:
        """Return whose ``optimizer`` it is."""
        return "generator" if optimizer is self.optimizers[self.generator_at] else "critic"


def check_penalties(penalties: Sequence[CriticPenalty], critics: dict[str, nn.Module]) -> None:
    """Refuse critics whose samples are not apart, or which cannot be differentiated twice.

    Raises:
        ValueError: If one is such; names the layer.
    """
    if not penalties:
        return
    kind = type(penalties[0]).__name__
    for name, critic in critics.items():
        for path, part in critic.named_modules():
            if isinstance(part, _BatchNorm):
                raise ValueError(
                    f"critics must have no BatchNorm with {kind}, which ties samples of a batch together, "
                    f"got {clean_name(f'{name}.{path}')!r}: use InstanceNorm, LayerNorm or none"
                )
        if compiled(critic):
            raise ValueError(
                f"critics must not be compiled with {kind}, as compiled code has no second derivative, got "
                f"{name!r}"
            )


def check_samples(real: Any, batch_norm: str | None) -> None:
    """Refuse real samples that a GAN cannot learn from.

    Raises:
        TypeError: If they are no floating tensor.
        ValueError: If there is one alone, and a BatchNorm.
    """
    if not (isinstance(real, Tensor) and real.is_floating_point() and real.ndim > 1):
        tensor = isinstance(real, Tensor)
        got = f"{real.dtype} of shape {tuple(real.shape)}" if tensor else type(real).__name__
        raise TypeError(
            f"real samples must be a floating tensor of shape (n, ...), got {got}: override real_samples"
        )
    if len(real) < 2 and batch_norm is not None:
        raise ValueError(
            f"a batch must have at least 2 samples for BatchNorm {batch_norm!r}, got {len(real)}: set "
            "drop_last=True"
        )


def made_by(name: str, make: Callable[[], Tensor], z: Tensor, real: Tensor) -> Tensor:
    """Return what the generator called ``name`` makes of ``z``, in the type of real samples.

    What goes wrong within it carries a note that tells what it was given.

    Raises:
        ValueError: If the samples are of another shape than real ones.
    """
    try:
        fake = make().to(real.dtype)
    except Exception as error:  # whatever a user's network raises; it goes on its way
        error.add_note(f"{name} was given latent points of shape {tuple(z.shape)}, as latent says")
        raise
    if fake.shape != real.shape:
        raise ValueError(
            f"{name} must make samples shaped as real ones, {tuple(real.shape)}, got {tuple(fake.shape)}"
        )
    return fake
