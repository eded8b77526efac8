"""The learning rate divided each time a validation metric stops improving.

    bad      validations in a row that did not beat the best value by more than min_delta
    m        <- max(final, m * factor)    when bad = patience; then bad = 0, and the next ``cooldown``
                                          validations do not count as bad
    rate of a group = its base rate * m

The same as torch's ReduceLROnPlateau with ``patience - 1`` (which counts the bad validations that it
*allows*), an absolute threshold, and floors that are shares of each group's own base rate.

Reference: Bengio, "Practical Recommendations for Gradient-Based Training of Deep Architectures", 2012,
https://arxiv.org/abs/1206.5533, section 3.1.1; Keras's and torch's callbacks of this kind have no paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, final

from lightning_tricks.core import checks
from lightning_tricks.core.stalling import check_stalling, observed, unseen
from lightning_tricks.lifecycle.rates import check_rates
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.lifecycle.watching import check_validation, validated

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["PlateauDecay", "decayed"]


def decayed(
    state: Mapping[str, float], *, factor: float, patience: int, cooldown: int, final: float
) -> dict[str, float]:
    """Return the state with the factor of the rate that follows from a value that was just observed.

    Args:
        state: How many values in a row were bad as ``"bad"``, how many more do not count as ``"rest"``, the
            factor as ``"factor"``.
        factor: What the factor is multiplied by.
        patience: Bad values after which it is.
        cooldown: How many values do not count after that.
        final: The factor falls no further than this.

    Example:
        >>> decayed({"bad": 2, "rest": 0, "factor": 1.0}, factor=0.5, patience=2, cooldown=3, final=0.0)
        {'bad': 0, 'rest': 3, 'factor': 0.5}
    """
    if state["rest"]:
        return {**state, "bad": 0, "rest": state["rest"] - 1}
    if state["bad"] < patience:
        return dict(state)
    return {**state, "bad": 0, "rest": cooldown, "factor": max(final, state["factor"] * factor)}


@final
@dataclass(eq=False, repr=False, kw_only=True)
class PlateauDecay(Technique):
    """Divide the learning rate each time a validation metric stops improving (:func:`decayed`).

    Beside a schedule, both count.

    * **When** at the end of each validation but the sanity check; the new rate holds from the next step.
    * **Changes** ``lr`` of every parameter group of every optimizer, to a multiple of the group's own base
      rate; beside ``LearningRate`` or ``WarmupCosine`` both factors are multiplied.
    * **Logs** ``plateau_decay/factor``; Lightning's LearningRateMonitor shows the rates themselves.
    * **Saves** the best value, how long it has not been beaten, and the factor. A second fit of the same
      Trainer goes on with them, as its clock does, whichever module is fitted; a new Trainer begins anew.
    * **Cost** none.
    * **Use** where the length of the run is not known, behind a warm-up if need be; **not** with a noisy
      metric or a few validations, where a schedule of known length does better, nor with ``barebones``.

    Args:
        monitor: Name of the metric, as the module or a callback logs it in validation. One that is missing is
            an error at the first validation, and at the sanity check if it is nearly the name of one that is
            logged; else a warning there, because a few batches may not give it.
        factor: What the rate is multiplied by, in (0, 1).
        patience: Validations in a row without improvement after which it is, at least 1.
        min_delta: By how much a value must beat the best, at least 0; just as good is no improvement.
        mode: ``"min"`` where lower is better, else ``"max"``.
        cooldown: Validations after a decay that do not count, at least 0.
        final: Share of each group's base rate below which it does not fall, in [0, 1].

    Example:
        >>> PlateauDecay(monitor="val_loss", factor=0.5, patience=3)
        PlateauDecay(monitor='val_loss', factor=0.5, patience=3, min_delta=0.0, mode='min', cooldown=0, \
final=0.0)
    """

    monitor: str
    factor: float = 0.1
    patience: int = 10
    min_delta: float = 0.0
    mode: Literal["min", "max"] = "min"
    cooldown: int = 0
    final: float = 0.0
    _state: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _decays: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        check_stalling(self.monitor, self.patience, self.min_delta, self.mode)
        checks.in_range("factor", self.factor, 0.0, 1.0, open_low=True, open_high=True)
        checks.whole("cooldown", self.cooldown)
        checks.in_range("final", self.final, 0.0, 1.0)
        self._state = {**unseen(self.mode), "rest": 0, "factor": 1.0}

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_rates(trainer, pl_module)

    def claims(self) -> Iterable[Claim]:
        return [self.claim("lr_decay", None)]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.conductor.rates.show(trainer)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_validation(trainer, "monitor", self.monitor)
        self._apply(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.report(trainer, pl_module, factor=self._state["factor"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = validated(self, trainer, self.monitor)
        if value is None:
            return
        before = self._state["factor"]
        self._state = decayed(
            observed(self._state, value, min_delta=self.min_delta, mode=self.mode),
            factor=self.factor,
            patience=self.patience,
            cooldown=self.cooldown,
            final=self.final,
        )
        self._decays += self._state["factor"] < before
        self._apply(trainer)

    def _apply(self, trainer: Trainer) -> None:
        self.conductor.rates.scale(trainer, self.state_key, self._state["factor"])

    def outcome(self) -> dict[str, float | int | str]:
        return {"decays": self._decays, "factor": self._state["factor"]}

    def saved(self) -> dict[str, Any]:
        told = {"monitor": self.monitor, "mode": self.mode}
        return {"watched": told, "state": dict(self._state), "decays": self._decays}

    def restore(self, state: dict[str, Any]) -> None:
        for name, then in state["watched"].items():
            if (now := getattr(self, name)) != then:
                raise ValueError(
                    f"{name} must be that of the checkpoint, {then!r}, in which its best value counts, "
                    f"got {now!r}"
                )
        self._state, self._decays = dict(state["state"]), state["decays"]
