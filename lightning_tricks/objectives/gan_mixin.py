"""Adversarial training of generators and critics: who steps when, on which loss, with which noise.

    each batch       the critics step, on real samples and on new fakes
    each n-th batch  the generators step, on other new fakes

Formulas stand where they are computed: :mod:`~lightning_tricks.objectives.adversarial_losses`,
:mod:`~lightning_tricks.objectives.critic_penalties`, :mod:`~lightning_tricks.objectives.layer_noise`.

References: Goodfellow et al., "Generative Adversarial Nets", 2014, https://arxiv.org/abs/1406.2661; Heusel et
al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017,
https://arxiv.org/abs/1706.08500, for a rate of each player's own; Chintala et al., "How to Train a GAN?",
2016, https://github.com/soumith/ganhacks, for batches of one kind and signs of failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tricks.core import checks
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.process_means import average_over_processes_
from lightning_tricks.core.schedule import Schedule
from lightning_tricks.lifecycle.strategies import unsynced
from lightning_tricks.objectives.adversarial_labels import NoisyLabels
from lightning_tricks.objectives.adversarial_losses import AdversarialLoss, NonSaturating
from lightning_tricks.objectives.critic_penalties import CriticPenalty, clip_weights_
from lightning_tricks.objectives.gan_player import Player, parameters_of
from lightning_tricks.objectives.gan_players import check_samples, named_networks, penalties_of
from lightning_tricks.objectives.gan_run import Turn, _GANRun
from lightning_tricks.objectives.gan_signals import FailureSignals
from lightning_tricks.objectives.latent import Latent
from lightning_tricks.objectives.layer_noise import LayerNoise, noisy, noisy_layers
from lightning_tricks.objectives.sample_grid import SampleGrid

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule

__all__ = ["GANMixin"]

_BETAS = {"betas": (0.0, 0.9)}


class GANMixin:
    """Train generators and critics against each other."""

    automatic_optimization = False

    generators: str | Sequence[str] = "generator"
    critics: str | Sequence[str] = "critic"
    latent: Latent = Latent(64)
    adversarial_loss: AdversarialLoss = NonSaturating()
    penalties: CriticPenalty | Sequence[CriticPenalty] = ()
    weight_clip: float | None = None
    generator_optimizer: Player = Player("Adam", lr=1e-4, options=_BETAS)
    critic_optimizer: Player = Player("Adam", lr=4e-4, options=_BETAS)
    n_critic: int = 1
    noisy_labels: NoisyLabels | None = None
    instance_noise: float | str | Schedule = 0.0
    layer_noise: LayerNoise | None = None
    failure_signals: FailureSignals | None = FailureSignals()
    sample_grid: SampleGrid | None = None
    gan_seed: int = 0

    # What a module may define in its own way.

    def real_samples(self, batch: Any) -> Tensor:
        """Return the real samples of ``batch``, shape (n, ...): itself, or its first entry."""
        found: Tensor = batch[0] if isinstance(batch, list | tuple) else batch
        return found

    def make(self, generator: nn.Module, z: Tensor, batch: Any) -> Tensor:
        """Return what ``generator`` makes of latent points, shape (n, ...); ``batch`` may hold conditions."""
        made: Tensor = generator(z)
        return made

    def judge(self, critic: nn.Module, samples: Tensor, batch: Any) -> Tensor:
        """Return the scores of ``samples``, shape (n, ...); ``batch`` may hold conditions."""
        scores: Tensor = critic(samples)
        return scores

    def features(self, samples: Tensor) -> Tensor:
        """Return what samples are compared by in search of collapsed modes, shape (n, ...)."""
        return samples

    def forward(self, z: Tensor) -> Tensor:
        """Return samples to look at, of the first generator, without a batch."""
        name = self.generators if isinstance(self.generators, str) else self.generators[0]
        return self.make(cast("nn.Module", self).get_submodule(name), z, None)

    # What the mixin does.

    def configure_optimizers(self) -> list[Optimizer]:
        """Return the optimizer of the critics and that of the generators.

        Raises:
            TypeError: If a setting is of a wrong type.
            ValueError: If one is out of its range, or names no network.
        """
        self._check_settings()
        module = cast("nn.Module", self)
        critics = parameters_of(named_networks(module, "critics", self.critics).values())
        generators = parameters_of(named_networks(module, "generators", self.generators).values())
        if not set(critics).isdisjoint(generators):
            raise ValueError("generators and critics must share no parameters, but do")
        return [self.critic_optimizer.build(critics), self.generator_optimizer.build(generators)]

    def _check_settings(self) -> None:
        kinds = {
            "latent": Latent,
            "adversarial_loss": AdversarialLoss,
            "generator_optimizer": Player,
            "critic_optimizer": Player,
            "noisy_labels": NoisyLabels | None,
            "layer_noise": LayerNoise | None,
            "failure_signals": FailureSignals | None,
            "sample_grid": SampleGrid | None,
        }
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                told = kind.__name__ if isinstance(kind, type) else kind
                raise TypeError(f"{name} must be {told}, got {getattr(self, name)!r}")
        if self.noisy_labels is not None and not self.adversarial_loss.takes_labels:
            kind_of_loss = type(self.adversarial_loss).__name__
            raise ValueError(f"noisy_labels must be None with {kind_of_loss}, which has no labels")
        if self.weight_clip is not None:
            checks.in_range("weight_clip", self.weight_clip, 0.0, open_low=True)
        checks.whole("n_critic", self.n_critic, 1)
        checks.whole("gan_seed", self.gan_seed)
        as_schedule("instance_noise", self.instance_noise, 0.0)
        penalties_of(self.penalties)

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return those of other bases, and what accompanies the run."""
        others = list(super().configure_callbacks())  # type: ignore[misc]  # of LightningModule, which follows
        trainer = cast("LightningModule", self).trainer
        return others if _GANRun.among(trainer) is not None else [*others, _GANRun()]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Let the critics make a step, and in each ``n_critic``-th batch the generators."""
        module = cast("LightningModule", self)
        run = _GANRun.among(module.trainer)
        if run is None:
            raise RuntimeError("configure_callbacks must return what that of GANMixin returns, too")
        real = self.real_samples(batch)
        check_samples(real, run.players.batch_norm)
        turn = run.turn(module.trainer, self, real.device)
        self._step_critics(run, turn, real, batch)
        if turn.generator_steps:
            self._step_generators(run, turn, real, batch)

    def _step_critics(self, run: _GANRun, turn: Turn, real: Tensor, batch: Any) -> None:
        loss, noise = self.adversarial_loss, turn.instance_noise
        with torch.no_grad():
            fakes = self._made(run, turn, real, batch)
        seen = noisy(real, std=noise, generator=turn.draws)
        shown = [(noisy(fake, std=noise, generator=turn.draws), self._labels(turn, real)) for fake in fakes]
        due = [penalty for penalty in penalties_of(self.penalties) if penalty.due(turn.step)]
        losses: list[Tensor] = []
        terms: list[Tensor] = []
        for critic in run.players.critics.values():

            def judge(samples: Tensor, critic: nn.Module = critic) -> Tensor:
                return self.judge(critic, samples, batch)

            scores = judge(seen)
            losses += [loss.critic(scores, judge(fake), labels) for fake, labels in shown]
            terms += [penalty.term(judge, seen, fake, turn.draws) for fake, _ in shown for penalty in due]
        run.note(critic_loss=torch.stack(losses).mean())
        if terms:
            run.note(penalty=torch.stack(terms).sum() / len(losses))
        # Of several generators the mean, but not of critics: each steps as it would alone.
        self._learn(torch.stack(losses + terms).sum() / len(fakes), run.players.critic_at)
        if self.weight_clip is not None:
            clip_weights_(parameters_of(run.players.critics.values()), limit=self.weight_clip)

    def _labels(self, turn: Turn, real: Tensor) -> tuple[Tensor | float, Tensor | float]:
        return (1.0, 0.0) if self.noisy_labels is None else self.noisy_labels.draw(len(real), turn.draws)

    def _step_generators(self, run: _GANRun, turn: Turn, real: Tensor, batch: Any) -> None:
        fakes = self._made(run, turn, real, batch)
        run.look(cast("LightningModule", self).trainer, real, fakes)
        seen = [noisy(fake, std=turn.instance_noise, generator=turn.draws) for fake in fakes]
        critics = run.players.critics.values()
        scores = [self.judge(critic, fake, batch) for critic in critics for fake in seen]
        losses = torch.stack([self.adversarial_loss.generator(each) for each in scores])
        run.note(generator_loss=losses.mean())
        # Of several critics the mean, but not of generators.
        self._learn(losses.sum() / len(critics), run.players.generator_at)

    def _made(self, run: _GANRun, turn: Turn, real: Tensor, batch: Any) -> list[Tensor]:
        """Return as many new fakes of each generator as there are real samples.

        Raises:
            ValueError: If they are of another shape.
        """
        fakes = []
        with noisy_layers(run.players.noisy, std=turn.layer_noise, generator=turn.draws):
            for name, generator in run.players.generators.items():
                z = self.latent.draw(len(real), turn.draws).to(real)
                fakes.append(self.make(generator, z, batch).to(real.dtype))
                if fakes[-1].shape != real.shape:
                    raise ValueError(
                        f"{name} must make samples of the shape of real ones, {tuple(real.shape)}, got "
                        f"{tuple(fakes[-1].shape)}"
                    )
        return fakes

    def _learn(self, loss: Tensor, at: int) -> None:
        """Let the optimizer at index ``at`` make a step down ``loss``."""
        module = cast("LightningModule", self)
        optimizer: Any = cast("Sequence[Any]", module.optimizers())[at]
        learning = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if not learning:
            return  # all are frozen
        optimizer.zero_grad()
        with unsynced(module.trainer):
            # The other player's weights are no inputs: they get no gradients, and none are computed.
            module.manual_backward(loss, inputs=learning)
        average_over_processes_([p.grad for p in learning if p.grad is not None])
        optimizer.step()
