"""What a run knows of a GAN that it trains: whose turn it is, its schedules, draws, numbers and signs.

Reference: Goodfellow et al., "Generative Adversarial Nets", 2014, https://arxiv.org/abs/1406.2661,
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch import Tensor

from lightning_tricks.core.functional import in_evaluation
from lightning_tricks.core.gradients import gradients_of
from lightning_tricks.core.norms import total_norm
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course
from lightning_tricks.core.seeds import seed_of
from lightning_tricks.lifecycle.averaged_output import averaged_output
from lightning_tricks.lifecycle.notice import callbacks_of, warn
from lightning_tricks.lifecycle.pictures import log_picture
from lightning_tricks.lifecycle.strategies import check_copies, share_buffers
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.objectives.balancing import read_freely
from lightning_tricks.objectives.gan_architecture import (
    doubtful_layers,
    doubtful_output,
    doubtful_range,
    doubtful_scores,
)
from lightning_tricks.objectives.gan_players import Players
from lightning_tricks.objectives.gan_signals import check_finite, relative_change, variance_share
from lightning_tricks.objectives.sample_grid import image_grid, png

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["Turn"]

_WATCHED = 16
"""Samples of the same latent points whose change is measured."""


class Turn(NamedTuple):
    """What holds in one training batch.

    Attributes:
        step: Steps that critics made before.
        draws: Source of all that is random in it.
        instance_noise: Standard deviation of the noise on what critics see.
        layer_noise: That of the noise in layers of generators.
        generator_steps: Whether generators step in it.
    """

    step: int
    draws: torch.Generator
    instance_noise: float
    layer_noise: float
    generator_steps: bool


@final
@dataclass(eq=False, repr=False, kw_only=True)
class _GANRun(Technique):
    """Accompany a module with GANMixin, which brings it along.

    * **When** at the start and the end of training batches, and at the end of epochs.
    * **Changes** nothing.
    * **Logs** what the card of GANMixin says.
    * **Saves** how many batches it has seen, from which and the seed all draws follow, how the schedules lie,
      and the last numbers that signs of failure are read from.
    * **Cost** on steps that are logged some reads to the host, and 16 samples.
    * **Use** through GANMixin; **not** by itself.

    Example:
        >>> _GANRun()
        _GANRun()
    """

    _players: Players | None = field(default=None, init=False, repr=False)
    _courses_of: dict[str, Course] = field(default_factory=dict, init=False, repr=False)
    _batches: int = field(default=0, init=False, repr=False)
    _numbers: dict[str, Tensor | float] = field(default_factory=dict, init=False, repr=False)
    _seen: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)
    _before: Tensor | None = field(default=None, init=False, repr=False)
    _told: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _looked: bool = field(default=False, init=False, repr=False)
    _called: bool = field(default=False, init=False, repr=False)

    @classmethod
    def among(cls, trainer: Trainer) -> _GANRun | None:
        """Return the one of ``trainer``."""
        return next((callback for callback in callbacks_of(trainer) if isinstance(callback, cls)), None)

    @property
    def state_key(self) -> str:
        return "GANMixin"

    @property
    def metric_prefix(self) -> str:
        return "gan"

    @property
    def players(self) -> Players:
        """The networks and who steps them."""
        assert self._players is not None
        return self._players

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._players, self._looked, self._called = None, False, False
        if not hasattr(pl_module, "adversarial_loss"):
            return  # another module of the same Trainer
        check_copies(trainer, self.state_key)
        self._players = Players.of(pl_module, trainer.optimizers)
        networks, critics = self._players.networks, self._players.critics
        doubts = [doubt for each in networks.items() for doubt in doubtful_layers(*each)]
        doubts += filter(None, (doubtful_scores(*each) for each in critics.items()))
        for doubt in doubts:
            warn(trainer, f"{self.state_key}: {doubt}")

    def claims(self) -> Iterable[Claim]:
        return []

    def signs(self) -> dict[str, str]:
        return dict(self._told)

    def begin(self, trainer: Trainer, pl_module: Any) -> None:
        if self._players is None:
            return
        layers = 0.0 if pl_module.layer_noise is None else pl_module.layer_noise.std
        self._courses_of = {
            name: self.lay(trainer, called, as_schedule(called, value, 0.0))
            for name, called, value in (
                ("instance_noise", "instance_noise", pl_module.instance_noise),
                ("layer_noise", "std of layer_noise", layers),
            )
        }

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._batches += 1
        share_buffers(trainer)

    def turn(self, trainer: Trainer, pl_module: Any, device: torch.device) -> Turn:
        """Return what holds in the batch that has begun."""
        self._called = True
        step, position = self._batches - 1, self.clock.position
        seed = seed_of(pl_module.gan_seed, step, trainer.global_rank)
        return Turn(
            step,
            torch.Generator(device).manual_seed(seed),
            **{name: course(position) for name, course in self._courses_of.items()},
            generator_steps=self._batches % pl_module.n_critic == 0,
        )

    def look(self, trainer: Trainer, real: Tensor, fakes: list[Tensor]) -> None:
        """Look at the samples of a batch: at the first for what they should be, on steps that log at all."""
        if self.reports(trainer) and len(real) > 1:
            features = self.players.features
            shares = [variance_share(features(fake), features(real)) for fake in fakes]
            self._numbers["variance"] = torch.stack(shares).min()
        if self._looked or real.ndim != 4:
            return
        self._looked = True
        doubts = [doubtful_range(real)]
        for (name, network), fake in zip(self.players.generators.items(), fakes, strict=True):
            doubts.append(doubtful_output(name, network, fake))
        for doubt in filter(None, doubts):
            warn(trainer, f"{self.state_key}: {doubt}")

    def note(self, **numbers: Tensor) -> None:
        """Take what may be logged, before it is learnt from.

        Raises:
            ValueError: If it is NaN or infinite, on a CPU; what is on a device is read on steps that log.
        """
        for name, number in numbers.items():
            self._numbers[name] = number.detach()
            if read_freely(number):
                check_finite(name, self._numbers[name])

    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._players is not None and self.reports(trainer) and (found := gradients_of(optimizer)):
            self._numbers[f"gradient_norm/{self.players.name_of(optimizer)}"] = total_norm(found, 2.0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if self._players is None:
            return
        if not self._called:
            self._called = True  # so that it is told once
            warn(
                trainer,
                f"{self.state_key}: the first batch did not call training_step of GANMixin, without which "
                "nobody learns: leave training_step alone, or call super().training_step(batch, batch_idx)",
            )
        if not self.reports(trainer):
            return
        for name in {"critic_loss", "generator_loss", "penalty"} & self._numbers.keys():
            check_finite(name, self._numbers[name])
        schedules = {name: course(self.clock.position - 1) for name, course in self._courses_of.items()}
        varying = {name: std for name, std in schedules.items() if getattr(pl_module, name)}
        self.report(trainer, pl_module, None, **self._numbers, **varying)
        if pl_module.failure_signals is not None and trainer.is_global_zero:
            self._watch(trainer, pl_module)

    def _watch(self, trainer: Trainer, pl_module: Any) -> None:
        """Look for signs of failure; reads from the device."""
        numbers = {name.partition("/")[0]: -float("inf") for name in self._numbers}
        for name, value in self._numbers.items():
            kind = name.partition("/")[0]
            numbers[kind] = max(numbers[kind], float(value))  # of two gradients the larger
        z = pl_module.latent.draw(_WATCHED, torch.Generator().manual_seed(seed_of(pl_module.gan_seed)))
        with in_evaluation(pl_module), torch.no_grad():
            samples = pl_module(z.to(self.players.like))
        if self._before is not None:
            numbers["change"] = relative_change(samples, self._before.to(samples)).item()
        self._before = samples
        signals, loss, labels = pl_module.failure_signals, pl_module.adversarial_loss, pl_module.noisy_labels
        if self._batches <= signals.start:
            numbers = {name: number for name, number in numbers.items() if name == "gradient_norm"}
        for name, number in numbers.items():
            self._seen[name] = [*self._seen.get(name, []), number][-signals.window :]
        floor = loss.floor(labels)
        blind = 0.0 if floor is None else loss.blind(labels)
        for kind, words in signals.found(self._seen, floor, blind).items():
            if kind not in self._told:
                self._told[kind] = words
                warn(trainer, f"{self.state_key}: {words}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        grid = None if self._players is None else pl_module.sample_grid
        if grid is None or not grid.due(trainer.current_epoch + 1) or not trainer.is_global_zero:
            return
        z = pl_module.latent.draw(grid.count, torch.Generator().manual_seed(seed_of(grid.seed)))
        samples = averaged_output(trainer, pl_module, z.to(self.players.like))
        if samples.ndim != 4 or samples.shape[1] not in (1, 3):
            raise ValueError(
                "sample_grid must be None unless samples are images of shape (n, 1 or 3, height, width), got "
                f"{tuple(samples.shape)}"
            )
        picture = image_grid(samples, columns=grid.columns).cpu()
        file = f"epoch-{trainer.current_epoch:04d}.png"
        log_picture(trainer, "gan/samples", picture, encode=png, folder=grid.folder, file=file)

    def finish(self, trainer: Trainer, pl_module: Any) -> None:
        if self._players is not None and 0 < self._batches < pl_module.n_critic:
            rule = "n_critic must be at most the batches of the run for generators to step"
            warn(trainer, f"{self.state_key}: {rule}, got {pl_module.n_critic}")

    def saved(self) -> dict[str, Any]:
        last = {name: float(value) for name, value in self._numbers.items()}
        before = None if self._before is None else self._before.cpu()
        return {
            "batches": self._batches,
            "numbers": last,
            "seen": self._seen,
            "before": before,
            "told": self._told,
            "looked": self._looked,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._batches, self._numbers = state["batches"], dict(state["numbers"])
        self._seen, self._before = dict(state["seen"]), state["before"]
        self._told, self._looked = dict(state["told"]), state["looked"]
