"""Monte-Carlo dropout: predictions from several passes with dropout on, their mean and their spread.

    mean = sum_k y_k / n,    std = sqrt(sum_k (y_k - mean) ** 2 / (n - 1)),    k = 1 ... n passes

Reference: Gal and Ghahramani, "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep
Learning", 2016, https://arxiv.org/abs/1506.02142. The running sums are Welford's, 1962.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lightning_tricks.core import checks
from lightning_tricks.core.conflicts import check_claims
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.lifecycle.notice import callbacks_of
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.network.dropouts import dropout_layers, rate_of
from lightning_tricks.network.surgery import seeded

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["MonteCarloDropout", "Spread", "dropping", "spread_of"]


class Spread(NamedTuple):
    """What several passes came to.

    Attributes:
        mean: Their mean, in the form of one prediction; at least float32.
        std: Their standard deviation (n - 1), in the same form.
    """

    mean: Any
    std: Any


@torch.no_grad()
def spread_of(predict: Callable[[], Any], *, passes: int) -> Spread:
    """Return mean and standard deviation of what ``predict`` returns in ``passes`` calls.

    Args:
        predict: Returns a floating tensor, or lists, tuples and dicts of such; each time of the same form.
        passes: At least 2. Memory does not grow with it.

    Raises:
        TypeError: If something that is returned is no floating tensor.
        ValueError: If the form or a shape changes.

    Example:
        >>> values = iter([torch.tensor([1.0]), torch.tensor([3.0])])
        >>> spread_of(lambda: next(values), passes=2)
        Spread(mean=tensor([2.]), std=tensor([1.4142]))
    """
    first, form = _floats(predict())
    means = [_wide(value).clone() for value in first]
    squares = [torch.zeros_like(mean) for mean in means]
    for count in range(2, passes + 1):
        values, found = _floats(predict())
        if found != form or any(v.shape != mean.shape for v, mean in zip(values, means, strict=True)):
            raise ValueError(f"predict_step must return one form in each pass, got {found} after {form}")
        for value, mean, square in zip(values, means, squares, strict=True):
            shift = _wide(value) - mean
            mean += shift / count
            square += shift * (_wide(value) - mean)
    spreads = [(square / (passes - 1)).sqrt() for square in squares]
    return Spread(tree_unflatten(means, form), tree_unflatten(spreads, form))


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _floats(predicted: Any) -> tuple[list[Tensor], TreeSpec]:
    leaves, form = tree_flatten(predicted)
    for leaf in leaves:
        if not (isinstance(leaf, Tensor) and leaf.is_floating_point()):
            kind = f"a tensor of {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise TypeError(f"predict_step must return floating tensors to take a mean of, got {kind}")
    return leaves, form


@contextmanager
def dropping(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let ``layers`` drop out within the context, and no other one leave its mode.

    torch's encoder layers are kept from their fused inference, which drops nothing.
    """
    former = [(layer, layer.training) for layer in layers]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for layer, _ in former:
            layer.training = True  # by itself: what it holds may be a norm
        yield
    finally:
        for layer, mode in former:
            layer.training = mode
        torch.backends.mha.set_fastpath_enabled(fused)


@final
@dataclass(eq=False, repr=False, kw_only=True)
class MonteCarloDropout(Technique):
    """Predict by the mean of several passes with dropout on, and tell their spread (:func:`spread_of`).

    ``trainer.predict`` returns both, of nested outputs too, with constant memory.

    * **When** in each batch of ``trainer.predict``; training, validation and test are as without it.
    * **Changes** what ``predict_step`` returns to a :class:`Spread`, ``(mean, std)``, each in the form of
      one prediction. Only the dropout layers are in training mode: BatchNorm uses its running statistics.
      What the module drops with ``torch.nn.functional.dropout`` does not take part.
    * **Logs** nothing.
    * **Saves** nothing.
    * **Cost** ``passes`` predictions for one; memory for four.
    * **Use** to see where a network trained with dropout is unsure; return probabilities from
      ``predict_step`` for the mean of probabilities, logits for that of logits; **not** where it returns
      classes, texts or other things without a mean (refused), nor around dropout of probability 0 (refused).

    Args:
        passes: How many, at least 2.
        params: Patterns of the dropout layers, by their names or types, or the names of what holds them.
        seed: Seed of all passes of each batch, at least 0; ``None`` to draw as the run does.

    Example:
        Two layers with dropout between them, in plain PyTorch, learn 1,000 handwritten digits.
        ``DigitsClassifier`` trains any network by cross entropy and SGD, and predicts probabilities; with
        ``QUIET`` the Trainer shows no bars and writes no files.

        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from lightning_tricks import MonteCarloDropout, to_yaml
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> _ = torch.manual_seed(0)
        >>> first, last = nn.Linear(64, 128), nn.Linear(128, 10)
        >>> network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Dropout(0.3), last)
        >>> model, data = DigitsClassifier(network), DigitsData()
        >>> Trainer(max_epochs=5, **QUIET).fit(model, data)

        We let it look at a 0, at a 1, and at a picture that is half of each. It has a class for every one of
        them:

        >>> images, labels = data.val_set.tensors
        >>> zero, one = images[labels == 0][0], images[labels == 1][0]
        >>> pictures = DataLoader(TensorDataset(torch.stack([zero, one, (zero + one) / 2])), batch_size=3)
        >>> (once,) = Trainer(**QUIET).predict(model, pictures)
        >>> once.argmax(dim=1).tolist()
        [0, 1, 8]

        Which of these can be trusted? Each batch is now predicted 50 times with dropout on; what comes back
        is the mean and the standard deviation of the passes, both in the form of one prediction:

        >>> monte_carlo = MonteCarloDropout(passes=50, seed=0)
        >>> ((mean, std),) = Trainer(callbacks=[monte_carlo], **QUIET).predict(model, pictures)
        >>> mean.shape, std.shape
        (torch.Size([3, 10]), torch.Size([3, 10]))
        >>> for each, spread in zip(mean, std):
        ...     best = each.argmax()
        ...     print(f"probability {each[best]:.1f}, spread {spread[best]:.1f}")
        probability 1.0, spread 0.0
        probability 1.0, spread 0.0
        probability 0.4, spread 0.1

        Passes agree on the digits and disagree on the picture that is none. That one somebody should look at:

        >>> int(std.amax(dim=1).argmax())
        2

        The same for LightningCLI, with all settings there are:

        >>> print(to_yaml(monte_carlo), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.MonteCarloDropout
            init_args:
              passes: 50
              params: '*'
              seed: 0
    """

    passes: int = 20
    params: Patterns = "*"
    seed: int | None = None
    _layers: list[nn.Module] = field(default_factory=list, init=False, repr=False)
    _attributes: dict[str, Any] | None = field(default=None, init=False, repr=False)
    _former: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.whole("passes", self.passes, 2)
        as_patterns("params", self.params)
        if self.seed is not None:
            checks.whole("seed", self.seed)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._find(pl_module)  # says before training what would stop the predictions after it

    def claims(self) -> Iterable[Claim]:
        return [self.claim("predict_step", None)]

    def _find(self, pl_module: LightningModule) -> None:
        layers = dropout_layers(pl_module, self.params)
        if not any(rate_of(layer) for layer in layers.values()):
            raise ValueError(f"params must match a dropout layer that drops, got {self.params!r}: all have 0")
        self._layers = list(layers.values())

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Conflicts are looked for where training starts, not where predictions do.
        ours = (each for each in callbacks_of(trainer) if isinstance(each, MonteCarloDropout))
        check_claims(claim for each in ours for claim in each.claims())
        self._find(pl_module)
        step = pl_module.predict_step
        if "dataloader_iter" in signature(step).parameters:
            raise ValueError("predict_step must get a batch to predict it twice, got a dataloader_iter")

        @wraps(step)
        def predict(*args: Any, **kwargs: Any) -> Spread:
            with ExitStack() as stack:
                if self.seed is not None:
                    stack.enter_context(seeded(self.seed, [pl_module.device]))
                stack.enter_context(dropping(self._layers))
                return spread_of(partial(step, *args, **kwargs), passes=self.passes)

        self._attributes = vars(pl_module)
        self._former = self._attributes.get("predict_step")
        self._attributes["predict_step"] = predict

    def undo(self) -> None:
        if self._attributes is not None:
            del self._attributes["predict_step"]
            if self._former is not None:
                self._attributes["predict_step"] = self._former
        self._attributes, self._former, self._layers = None, None, []
