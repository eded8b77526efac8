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
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tricks.core.process_means import average_over_processes_
from lightning_tricks.core.schedule import Schedule
from lightning_tricks.lifecycle.mixin_hooks import check_first
from lightning_tricks.lifecycle.strategies import unsynced
from lightning_tricks.objectives.adversarial_labels import NoisyLabels
from lightning_tricks.objectives.adversarial_losses import AdversarialLoss, NonSaturating
from lightning_tricks.objectives.critic_penalties import CriticPenalty, clip_weights_
from lightning_tricks.objectives.gan_player import Player, parameters_of
from lightning_tricks.objectives.gan_players import check_samples, made_by, named_networks, penalties_of
from lightning_tricks.objectives.gan_run import Turn, _GANRun
from lightning_tricks.objectives.gan_settings import check_settings
from lightning_tricks.objectives.gan_signals import FailureSignals
from lightning_tricks.objectives.latent import Latent
from lightning_tricks.objectives.layer_noise import LayerNoise, noisy, noisy_layers
from lightning_tricks.objectives.sample_grid import SampleGrid

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule

__all__ = ["GANMixin"]

_BETAS = {"betas": (0.0, 0.9)}


class GANMixin:
    """Train generators and critics against each other; inherit it before LightningModule.

    It has four losses, an optimizer and rate per player, gradient penalties, R1 and R2, clipping, soft and
    exchanged labels, and noise on schedules; it names signs of failure and logs pictures.

    * **When** in each training batch the critics make a step, and in every ``n_critic``-th the generators,
      each on fakes of their own. In manual optimization: all else here counts training batches.
    * **Changes** the weights of the networks that ``generators`` and ``critics`` name. A player's step leaves
      the others' weights and gradients alone. Real samples and those of each generator pass the critics by
      themselves, so that no BatchNorm mixes them.
    * **Logs** ``gan/critic_loss`` (without penalties), ``gan/generator_loss``, ``gan/penalty``,
      ``gan/gradient_norm/critic`` and ``/generator`` (before clipping), ``gan/variance`` (of features over
      fakes, as a share of that over real samples), ``gan/instance_noise``, ``gan/layer_noise``, and pictures
      as ``gan/samples``. Warns once of each sign that training fails, and of what does no good to a GAN of
      images: no tanh at the end, pixels outside [-1, 1], ReLU, max-pooling. A loss that is not finite is an
      error, on a GPU on steps that are logged.
    * **Saves** how many batches it has seen, from which and ``gan_seed`` follows all that is drawn at random,
      how the schedules lie, and the last numbers that signs of failure are read from.
    * **Cost** on steps that are logged some reads to the host and 16 samples. Fakes are made once for each
      player's step; a penalty takes a second backward pass through the critics.
    * **Use** in one process or under DDP, for which no unused parameters need to be searched: it averages
      gradients itself, after each backward pass. FSDP, DeepSpeed, communication hooks and accumulation are
      refused. A gradient scaler is updated at each player's step, so bf16 is the better choice. **not** with
      a penalty on a critic that has BatchNorm or is compiled (refused), nor to hold a player back while the
      other wins: rates, penalties and ``n_critic`` do that.

    ``EMAWeights(params="generator")`` averages the generator, from which samples should come; pictures then
    do. ``SpectralNorm(params="critic")``, ``GradientClip`` and ``LearningRate`` go with it, and
    ``OptimizerMixin``, inherited before it, may configure the optimizers: one for all generators, one for all
    critics.

    After 40 epochs on digits of 8x8 pixels, a classifier of real ones recognises 79 % of what the average
    draws, and finds all ten; ``python -m benchmarks.gan`` compares settings, ``recipes.digits_gan`` has the
    module.

    Attributes:
        generators: Names of the networks that make samples, one or several; critics judge what each makes.
        critics: Names of those that score samples; a generator's loss is the mean over them.
        latent: The latent space, as ``Latent(64)`` or ``Latent(64, law="sphere")``.
        adversarial_loss: ``NonSaturating()``, ``Hinge()``, ``LeastSquares()`` or ``Wasserstein()``.
        penalties: ``GradientPenalty()``, ``R1()``, ``R2()``, or several of them.
        weight_clip: After each of their steps, critics' weights are clipped to this size; ``None`` for not,
            0.01 is that of the Wasserstein GAN.
        generator_optimizer: A ``Player``: optimizer and rate of the generators.
        critic_optimizer: That of the critics.
        n_critic: Steps of the critics for one of the generators, at least 1; each takes a batch.
        noisy_labels: ``NoisyLabels()`` for soft and exchanged labels of the critics; ``None`` for 1 and 0.
        instance_noise: Standard deviation of Gaussian noise on all that critics see, real or fake; a number,
            a schedule or its text, such as ``"0.1 * linear(to=0.0)"``.
        layer_noise: ``LayerNoise(0.1, layers=...)`` in the generators; ``None`` for none.
        failure_signals: From where on a sign is told; ``None`` for none.
        sample_grid: ``SampleGrid()`` for pictures of the first generator's samples; ``None`` for none.
        gan_seed: Of all that is drawn at random, at least 0; each process draws its own.

    Example:
        A ring of points; with ``QUIET`` the Trainer shows no bars and writes no files.

        >>> import torch
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from lightning_tricks import EMAWeights, GANMixin, Latent, Player, R1
        >>> from lightning_tricks.recipes.digits import QUIET
        >>> _ = torch.manual_seed(0)
        >>> angles = 2 * torch.pi * torch.rand(4096)
        >>> points = TensorDataset(torch.stack([angles.cos(), angles.sin()], dim=1))

        A generator, a critic, and what is to be other than usual:

        >>> def layers(inputs, outputs):
        ...     hidden = (nn.Linear(inputs, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2))
        ...     return nn.Sequential(*hidden, nn.Linear(32, outputs))
        >>> class Ring(GANMixin, LightningModule):
        ...     latent = Latent(2)
        ...     penalties = R1(0.1)
        ...     generator_optimizer = Player("Adam", lr=2e-3, options={"betas": (0.0, 0.9)})
        ...     critic_optimizer = Player("Adam", lr=4e-3, options={"betas": (0.0, 0.9)})
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.generator, self.critic = layers(2, 2), layers(2, 1)

        Called with latent points, the module gives samples. How many of them lie near the ring?

        >>> gan = Ring()
        >>> z = gan.latent.draw(500)
        >>> def near():
        ...     return (gan(z).norm(dim=1) - 1).abs().lt(0.2).float().mean().item()
        >>> near()
        0.0
        >>> average = EMAWeights(decay=0.98, params="generator")
        >>> Trainer(max_epochs=5, callbacks=[average], **QUIET).fit(gan, DataLoader(points, 64))
        >>> near() > 0.8
        True
    """

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

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a class in which the ``training_step`` of another base would come first.

        Raises:
            TypeError: If it would.
        """
        super().__init_subclass__(**options)
        check_first(cls, GANMixin, "training_step")

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
            ValueError: If there is no network of a name, or both players have a parameter.
        """
        module = cast("nn.Module", self)
        critics = parameters_of(named_networks(module, "critics", self.critics).values())
        generators = parameters_of(named_networks(module, "generators", self.generators).values())
        if not set(critics).isdisjoint(generators):
            raise ValueError("generators and critics must share no parameters, but do")
        return [self.critic_optimizer.build(critics), self.generator_optimizer.build(generators)]

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return those of other bases, and what accompanies the run.

        Raises:
            TypeError: If a setting is of a wrong type.
            ValueError: If one is out of its range, or the run accumulates gradients.
        """
        others = list(super().configure_callbacks())  # type: ignore[misc]  # of LightningModule, which follows
        trainer = cast("LightningModule", self).trainer
        if trainer.state.fn == "fit":
            check_settings(self, trainer.accumulate_grad_batches)
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
        """Return as many new fakes of each generator as there are real samples."""
        fakes = []
        with noisy_layers(run.players.noisy, std=turn.layer_noise, generator=turn.draws):
            for name, generator in run.players.generators.items():
                z = self.latent.draw(len(real), turn.draws).to(real)
                fakes.append(made_by(name, partial(self.make, generator, z, batch), z, real))
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
