"""Several losses in one module: ``self.balance({"box": l1, "class": l2})`` returns the scalar to minimise.

    L = sum of w_i L_i,    w by a strategy, the same for all batches of an optimizer step

References: those of the strategies; Caruana, "Multitask Learning", 1997,
https://doi.org/10.1023/A:1007379606734, for losses on one network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_tricks.core.duration import Horizon
from lightning_tricks.lifecycle.clock import Clock
from lightning_tricks.lifecycle.closures import averaged
from lightning_tricks.lifecycle.horizon import run_horizon
from lightning_tricks.lifecycle.mixin_hooks import check_hooks
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.objectives.balancing import Balancing, stacked
from lightning_tricks.objectives.grad_norm import shared_parameters, task_gradients
from lightning_tricks.objectives.loss_balance import FixedWeights, LossBalance
from lightning_tricks.objectives.uncertainty_balance import check_learned

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["BalancedLosses"]

KEY = "balanced_losses"
LEARNED = "loss_log_variances"


class BalancedLosses:
    """Weigh several losses against each other; inherit it before LightningModule.

    ``self.balance({"box": l1, "class": l2})`` returns the scalar to minimise: by ``FixedWeights``,
    ``MagnitudeBalance``, ``UncertaintyBalance``, ``GradNorm``, ``DynamicWeightAverage`` or ``RandomWeights``.

    * **When** ``training_step`` calls ``self.balance(losses)``, with the same names in each batch. Weights
      are those of an optimizer step, made from the steps before it: all batches of an accumulation have the
      same, and another pass over a batch changes nothing.
    * **Changes** nothing but what it returns. In evaluation that is the sum with the weights of the last
      training step (1 each if there was none), and nothing moves; to choose a checkpoint, watch the losses
      themselves. Over several processes weights follow from the losses' means over all, and are the same.
    * **Logs** ``balanced_losses/loss/NAME`` and ``balanced_losses/weight/NAME``.
    * **Saves** what the strategy remembers, under ``"balanced_losses"`` in checkpoints; and a parameter
      ``loss_log_variances`` for ``UncertaintyBalance``, which ``configure_optimizers`` must give to an
      optimizer, as ``self.parameters()`` does, and OptimizerMixin without decay. A new run begins anew, but
      for that parameter.
    * **Cost** one all-reduce of a few numbers per batch; ``GradNorm`` a backward pass per loss. From a device
      nothing is read but on steps that Lightning logs, where a loss that was NaN since the last one is named;
      on a CPU it is named at once.
    * **Use** for losses in different units, or that fall at different speeds; **not** before equal weights
      were tried. For losses that pull against each other, GradientSurgery takes each times its own of
      ``self.loss_weights``.

    Attributes:
        loss_balance: The strategy: ``FixedWeights({"box": 1.0, "class": 0.1})``, ``MagnitudeBalance()``,
            ``UncertaintyBalance({"box": "regression", "class": "classification"})``,
            ``GradNorm("trunk.3")``, ``DynamicWeightAverage()`` or ``RandomWeights()``. What each promises
            stands in its docstring.

    Example:
        A network learns which digit it sees, and how much ink is in its upper half, in units of which the
        loss has a thousand.

        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from torch.nn.functional import cross_entropy, mse_loss
        >>> from lightning_tricks import BalancedLosses, FixedWeights, MagnitudeBalance
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsData
        >>> class TwoTasks(BalancedLosses, LightningModule):
        ...     def __init__(self, loss_balance):
        ...         super().__init__()
        ...         self.loss_balance = loss_balance
        ...         self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        ...         self.digit, self.ink = nn.Linear(64, 10), nn.Linear(64, 1)
        ...     def training_step(self, batch, batch_idx):
        ...         images, labels = batch
        ...         hidden, ink = self.trunk(images), images[:, 0, :4].sum(dim=(1, 2))
        ...         ink_loss = 1000 * mse_loss(self.ink(hidden)[:, 0], ink)
        ...         return self.balance({"digit": cross_entropy(self.digit(hidden), labels), "ink": ink_loss})
        ...     def configure_optimizers(self):
        ...         return torch.optim.AdamW(self.parameters(), lr=2e-3)
        >>> data = DigitsData()
        >>> data.setup("fit")
        >>> def trained(loss_balance):
        ...     _ = torch.manual_seed(0)
        ...     model = TwoTasks(loss_balance)
        ...     Trainer(max_epochs=10, **QUIET).fit(model, data.train_dataloader())
        ...     images, labels = data.val_set.tensors
        ...     hits = model.digit(model.trunk(images)).argmax(1) == labels
        ...     return model, hits.float().mean().item()

        With equal weights the ink has all of the gradient. Divided by their own means, both are learnt:

        >>> _, equal = trained(FixedWeights())
        >>> model, balanced = trained(MagnitudeBalance())
        >>> balanced > equal + 0.1
        True
        >>> bool(model.loss_weights["digit"] > model.loss_weights["ink"])
        True
    """

    loss_balance: LossBalance = FixedWeights()
    loss_log_variances: nn.Parameter
    _balancing: Balancing | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a class in which a hook that balancing needs would not be called.

        Raises:
            TypeError: If one would not; names it.
        """
        super().__init_subclass__(**options)
        hooks = ("configure_model", "on_fit_start", "on_save_checkpoint", "on_load_checkpoint")
        check_hooks(cls, BalancedLosses, hooks)

    @property
    def loss_weights(self) -> dict[str, Tensor]:
        """The weights in force, by name: those of the last call of :meth:`balance` in training."""
        run = self._balancing
        return {} if run is None or run.weights is None else dict(zip(run.names, run.weights, strict=True))

    def balance(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar to minimise, at least in single precision.

        Args:
            losses: Tensors of one number each, by name.

        Raises:
            TypeError: If ``losses`` are not tensors by name.
            ValueError: If one is not a single number, NaN, infinite, or negative where that means nothing to
                the strategy; or if the names are not those of the batch before, of the settings, or of the
                checkpoint that the run goes on from.
        """
        module, strategy = cast("LightningModule", self), self.loss_balance
        names, values = stacked(losses)
        run = self._balancing
        if run is not None:
            run.check_names(names)
        if not (module.training and torch.is_grad_enabled()):
            if run is None or run.weights is None:
                return values.sum()
            return (run.weights.to(values) * values).sum()
        if run is None:
            strategy.check(names)
            run = self._balancing = Balancing(names)
        return self._balance(run, values, module._trainer)

    def _balance(self, run: Balancing, values: Tensor, trainer: Trainer | None) -> Tensor:
        """Return the scalar of a training batch."""
        strategy = self.loss_balance
        logs = trainer is not None and trainer._logger_connector.should_update_logs
        seen = values.detach()
        if strategy.looks and trainer is not None and trainer.world_size > 1:
            # Reduced in place, which must not reach the values in the graph.
            seen = cast("Tensor", trainer.strategy.reduce(seen.clone(), reduce_op="mean"))
        run.to(seen.device)
        run.check_values(strategy, seen, read=logs or run.state is None)
        batch = None
        if trainer is None:
            run.open(strategy, stamp=None, epoch=0)
        else:
            run.open(strategy, stamp=trainer.global_step, epoch=trainer.current_epoch)
            batch = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if run.is_new(batch):
            norms = None if strategy.shared is None else self._norms(run, values, trainer)
            run.see(strategy, seen, norms, batch=batch)
        if run.courses is None:
            clock = Clock()
            clock.position = run.steps
            run.courses = strategy.lay(Horizon(None) if trainer is None else run_horizon(trainer, clock))
        moment = run.moment(self._learned())
        if run.weights is None:
            run.weights = strategy.weigh(moment).to(seen.dtype).to(seen.device, non_blocking=True)
        if logs and trainer is not None and not trainer.barebones:
            named = {f"{KEY}/{name}": value for name, value in run.numbers(seen).items()}
            cast("LightningModule", self).log_dict(named, on_step=True, on_epoch=False)
        total = (run.weights * values).sum()
        term = strategy.learning_term(moment, seen)
        # What the losses count for is there already.
        return total if term is None else total + term - (run.weights * seen).sum()

    def _learned(self) -> Tensor | None:
        """Return what an optimizer learns, whole."""
        if not self.loss_balance.learned:
            return None
        learned = getattr(self, LEARNED, None)
        if learned is None:
            raise RuntimeError(
                f"{LEARNED} must be there before an optimizer is: call configure_model(), as a Trainer does"
            )
        return learned.full_tensor() if isinstance(learned, DTensor) else cast("Tensor", learned)

    def _norms(self, run: Balancing, values: Tensor, trainer: Trainer | None) -> Tensor:
        """Return the norms of the gradients of the losses so far in this step, the same in all processes."""
        module = cast("LightningModule", self)
        if run.shared is None:
            assert self.loss_balance.shared is not None
            optimizers = None if trainer is None else trainer.optimizers
            run.shared = shared_parameters(module, self.loss_balance.shared, optimizers)
        # Else small gradients would be 0 in half precision; only their ratios count.
        scaler = getattr(trainer and trainer.precision_plugin, "scaler", None)
        gradients = task_gradients((values if scaler is None else scaler.scale(values)).unbind(), run.shared)
        if trainer is not None and trainer.world_size > 1:
            gradients = averaged(trainer, gradients)
        return run.norms_with(gradients)

    # What Lightning calls.

    def configure_model(self) -> None:
        """Make the parameter that the strategy learns, if it does."""
        cast("Any", super()).configure_model()
        module = cast("LightningModule", self)
        if not isinstance(self.loss_balance, LossBalance):
            raise TypeError(
                f"loss_balance must be a strategy such as MagnitudeBalance(), got {self.loss_balance!r}"
            )
        if self.loss_balance.learned and getattr(self, LEARNED, None) is None:
            weights = [p for p in module.parameters() if p.is_floating_point()]
            kind = weights[0].dtype if weights else None
            zeros = torch.zeros(len(self.loss_balance.learned), dtype=kind, device=module.device)
            self.loss_log_variances = nn.Parameter(zeros)

    def on_fit_start(self) -> None:
        """Check what the strategy needs of the run.

        Raises:
            ValueError: If it is not there; says what to do.
        """
        cast("Any", super()).on_fit_start()
        module, strategy = cast("LightningModule", self), self.loss_balance
        trainer = module.trainer
        if strategy.learned:
            if decay := check_learned(self.loss_log_variances, trainer.optimizers):
                warn(trainer, f"{LEARNED} should not decay, got weight_decay={decay}: give it its own group")
        elif trainer.ckpt_path is None and trainer.global_step == 0:
            self._balancing = None
        if self._balancing is not None:
            self._balancing.courses = self._balancing.shared = None
        if strategy.shared is not None:
            if trainer.strategy.restore_checkpoint_after_setup:
                name, kind = type(strategy).__name__, type(trainer.strategy).__name__
                raise ValueError(f"{name} needs whole gradients in each process: use DDP, got {kind}")
            shared_parameters(module, strategy.shared, trainer.optimizers)

    def on_train_end(self) -> None:
        """Say so if nothing was balanced."""
        cast("Any", super()).on_train_end()
        if self._balancing is None:
            words = "BalancedLosses: training_step never called self.balance(losses): nothing was weighed"
            warn(cast("LightningModule", self).trainer, words)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the strategy remembers."""
        cast("Any", super()).on_save_checkpoint(checkpoint)
        if self._balancing is not None:
            saved = self._balancing.saved()
            checkpoint[KEY] = {"strategy": repr(self.loss_balance), **saved}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back; a checkpoint without it, as from before there was a balance, starts anew.

        Raises:
            ValueError: If a run goes on with another strategy, or with other losses to learn for.
        """
        cast("Any", super()).on_load_checkpoint(checkpoint)
        trainer = cast("LightningModule", self)._trainer
        goes_on = trainer is not None and trainer.state.fn == "fit"
        entry = dict(checkpoint.get(KEY, {}))
        before, now = entry.pop("strategy", None), repr(self.loss_balance)
        same = before is None or before.partition("(")[0] == type(self.loss_balance).__name__
        if goes_on and not same:
            raise ValueError(f"loss_balance must be that of the checkpoint, {before}, got {now}")
        self._balancing = Balancing.restored(entry) if entry and same else None
        self._fit_learned(checkpoint.get("state_dict"), goes_on=goes_on)
        if trainer is not None and goes_on and before not in (None, now):
            warn(trainer, f"loss_balance was resumed with changed settings: {before} -> {now}")

    def _fit_learned(self, state: dict[str, Tensor] | None, *, goes_on: bool) -> None:
        """Give ``state`` the parameter that is learned, or take it away, unless a run is to go on with it."""
        learned = self.loss_balance.learned
        if self._balancing is not None and learned:
            self._balancing.check_names(learned)
        if state is None or bool(learned) == (LEARNED in state):
            return
        if not learned:
            del state[LEARNED]
        elif goes_on:
            raise ValueError(
                f"a checkpoint to go on from must hold {LEARNED} for {type(self.loss_balance).__name__}, but "
                "it does not: load its weights alone, by load_from_checkpoint"
            )
        else:
            state[LEARNED] = self.loss_log_variances.detach().clone()
