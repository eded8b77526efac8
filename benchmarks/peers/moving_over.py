"""The table of the README's section on moving over: both lines of each row are run as they stand there.

Judged by weights, averages, rates, labels or sizes, which must be the same but for what the row says. Where
it says "the same with" settings of ours, it is with these that they are.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.lines import PEERS, Row, rows
from benchmarks.peers.loop import looped, told
from benchmarks.peers.small import Live, Model, Net, farthest, fitted, floating, sgd
from tests.toys import Loader, trainer, weights

__all__ = ["CASES", "COMPARED", "QUESTION"]

QUESTION = "Does the line that the README writes in the place of another's do the same?"


class Watched(Net):
    """Logs a metric by a script, and notes the rates of its head and its backbone at each step.

    It has no BatchNorm, so that features stay while the backbone does.
    """

    def __init__(self, *script: float) -> None:
        """Take a value for each epoch; the last one stays."""
        super().__init__()
        del self.backbone[1]
        self.script, self.rates = script or (1.0,), []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log it."""
        self.log("val_loss", self.script[min(self.current_epoch, len(self.script) - 1)])

    def configure_optimizers(self) -> Any:
        """Return an optimizer that notes."""
        optimizer = sgd(self)
        optimizer.register_step_pre_hook(lambda *_: self.rates.append(self.now(optimizer)))
        return optimizer

    def now(self, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        """Return both rates, 0 for a part that does not learn."""
        rates = {part: group["lr"] for group in optimizer.param_groups for part in group["params"]}
        learns = {part: rate for part, rate in rates.items() if part.requires_grad}
        return learns.get(self.head.weight, 0.0), learns.get(self.backbone[0].weight, 0.0)


@cache
def plain() -> Model:
    """Return what a run without anything ends with."""
    return weights(fitted())


def near(first: Model, second: Model, bound: float = 0.0) -> Verdict:
    """Compare what two runs end with, but for whole numbers."""
    distance = farthest(floating(first), floating(second))
    if farthest(first, {name: plain()[name] for name in first}) == 0.0:
        return judged(False, "nothing was done")
    return judged(distance <= bound, "equal to the bit" if distance == 0.0 else f"{distance:.1e} apart")


def clipped(row: Row) -> Verdict:
    """Compare a run that the Trainer clips."""
    module = Net()
    row.theirs().fit(module, Loader(), Loader(2, seed=9, fixed=True))
    return near(weights(module), weights(fitted(row.ours())))


def averaged(row: Row, theirs: Model) -> Verdict:
    """Compare an average; as the row has it, it must run, too."""
    fitted(row.ours())
    return near(theirs, weights(fitted(row.alike())), 1e-6)


def lightnings_average(row: Row) -> Verdict:
    """Let it leave its average."""
    return averaged(row, weights(fitted(row.theirs())))


def timms_average(row: Row) -> Verdict:
    """Update it in a loop."""
    module = Net()
    average = row.theirs(model=module)
    looped(module, after_step=lambda: average.update(module))
    return averaged(row, weights(average.module))


def composers_average(row: Row) -> Verdict:
    """Let Composer's events update it."""
    algorithm = row.theirs()
    told(algorithm, Net())
    average = algorithm.ema_model
    return averaged(row, {**average.named_parameters_dict, **average.named_buffers_dict})


def stochastic(row: Row) -> Verdict:
    """Compare what the means are of, and the rates; Lightning is an epoch ahead with both."""
    found = []
    for callback in (row.theirs(), row.ours()):
        live, module = Live(), Watched()
        fitted(live, callback, module=module, max_epochs=20, batches=2)
        ends, mean = live.seen[::2], weights(module)
        means = [{name: sum(end[name] for end in ends[k : k + 5]) / 5 for name in mean} for k in range(17)]
        nearest = min(range(17), key=lambda k: farthest(mean, means[k]))
        found.append((nearest, farthest(mean, means[nearest]), [rate for rate, _ in module.rates[::2]]))
    (first, apart, theirs), (later, our_apart, ours) = found
    means_alike = later == first + 1 == 16 and max(apart, our_apart) < 1e-6
    rates = rates_alike(theirs[:-1], ours[1:])
    return judged(
        means_alike and rates.outcome == "right", f"means of 5 epochs from {first} and {later}, {rates.seen}"
    )


def falling(row: Row) -> Verdict:
    """Compare the rates after values of a metric."""
    script = (2.0, 1.0, *[1.0] * 8, 0.5, 0.6, 0.4, *[0.7] * 12)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, theirs = row.theirs(optimizer=optimizer), []
    for value in script:
        theirs.append(optimizer.param_groups[0]["lr"])
        scheduler.step(value)
    module = Watched(*script)
    fitted(row.ours(), module=module, max_epochs=len(script), batches=1)
    return rates_alike(theirs, [rate for rate, _ in module.rates])


def rates_alike(theirs: list[float], ours: list[float]) -> Verdict:
    """Compare rates step by step."""
    apart = max(abs(one - other) for one, other in zip(theirs, ours, strict=True))
    return judged(apart < 1e-7 and len(set(theirs)) > 2, f"rates are up to {apart:.1e} apart")


def annealed(row: Row) -> Verdict:
    """Compare the rates of 100 steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, theirs = row.theirs(optimizer=optimizer), []
    for _ in range(100):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    module = Watched()
    fitted(row.ours(), module=module, max_epochs=20, limit_val_batches=0)
    return rates_alike(theirs, [rate for rate, _ in module.rates])


def annealed_by_epochs(row: Row) -> Verdict:
    """Compare the rates of 90 epochs, which must lie between timm's of an epoch and of the next."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, theirs = row.theirs(optimizer=optimizer), []
    for epoch in range(91):
        scheduler.step(epoch)
        theirs.append(optimizer.param_groups[0]["lr"])
    module = Watched()
    fitted(row.ours(), module=module, max_epochs=90, batches=3, limit_val_batches=0)
    ours = [rate for rate, _ in module.rates]
    between = [sorted(pair) for pair in pairwise(theirs) for _ in range(3)]
    out = [max(low - rate, rate - high) for rate, (low, high) in zip(ours, between, strict=True)]
    return judged(max(out) < 1e-9, f"rates are up to {max(out):.1e} beyond timm's")


def opening(row: Row) -> Verdict:
    """Compare when the backbone opens, the weights until then, and at which rate it learns at last."""
    found = []
    for callback in (row.theirs(), row.ours()):
        module, live = Watched(3.0, 2.0, 1.0), Live()
        fitted(live, callback, module=module, max_epochs=18, batches=2, enable_checkpointing=True)
        rates = [rate for _, rate in module.rates[::2]]
        epoch = next(epoch for epoch, rate in enumerate(rates) if rate)
        found.append((epoch, live.seen[2 * epoch], rates[-1]))
    (epoch, before, last), (our_epoch, our_before, our_last) = found
    apart = farthest(before, our_before)
    # The row says of finetuning-scheduler's rate that it is another.
    right = epoch == our_epoch and apart == 0.0 and (last == our_last or bool(row.whose))
    return judged(
        right, f"opens after {epoch} and {our_epoch} epochs, {apart:.1e} apart, {last} and {our_last}"
    )


def adaptive(row: Row) -> Verdict:
    """Compare a run that timm clips."""
    module = Net()
    looped(module, before_step=lambda: row.theirs(model=module))
    return near(weights(module), weights(fitted(row.ours())))


class Criterion(Net):
    """With its loss as a part of it."""

    def __init__(self) -> None:
        """Make it."""
        super().__init__()
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        return self.criterion(self(batch[0]), batch[1])


def learnt(module: nn.Module) -> Model:
    """Return the parameters alone: in BatchNorm's counters the second forward pass of SAM may count."""
    return {name: part.detach() for name, part in module.named_parameters()}


def under_composer(row: Row) -> Verdict:
    """Compare a run that Composer's events change."""
    module = Net()
    told(row.theirs(), module)
    return near(learnt(module), learnt(fitted(row.ours(), module=Criterion())), 1e-6)


class Kept(Net):
    """Keeps the batches that training gets."""

    def __init__(self) -> None:
        """Make it for images of any size."""
        super().__init__()
        self.backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(4, 10)
        self.batches: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Keep it."""
        self.batches.append(tuple(batch))
        return super().training_step(batch, batch_idx)


def mixed(row: Row) -> Verdict:
    """Compare whether inputs and labels are mixed alike, and by which shares on average."""
    np.random.seed(0)
    mixup, inputs, labels = row.theirs(), torch.eye(10), torch.arange(10)
    theirs = [mixup(inputs.clone(), labels) for _ in range(800)]
    data = TensorDataset(inputs.view(10, 1, 1, 10).repeat(200, 1, 1, 1), labels.repeat(200))
    module = Kept()
    trainer(row.ours(), max_epochs=1).fit(module, DataLoader(data, 10))
    ours = [(inputs.flatten(1), labels) for inputs, labels in module.batches]
    apart = max(float((inputs - labels).abs().max()) for inputs, labels in theirs + ours)
    # Of two different labels this is the product of their shares. One in ten of ours meets itself.
    products = [
        torch.stack([1 - labels.square().sum(1) for _, labels in each]) / 2 for each in (theirs, ours)
    ]
    product, our_product = float(products[0].mean()), float(products[1].mean()) / 0.9
    right = apart < 1e-6 and abs(our_product / product - 1) < 0.2
    return judged(right, f"products of shares {product:.3f} and {our_product:.3f}, {apart:.1e} apart")


def resized(row: Row) -> Verdict:
    """Compare the sizes of the images of 40 steps."""
    images, labels = torch.randn(80, 1, 32, 32), torch.arange(80) % 10
    batches = list(zip(images.split(2), labels.split(2), strict=True))
    theirs = told(row.theirs(), Kept(), batches).sizes
    module = Kept()
    trainer(row.ours(), max_epochs=1).fit(module, DataLoader(TensorDataset(images, labels), 2))
    ours = [inputs.shape[-1] for inputs, _ in module.batches]
    return judged(
        ours == theirs and len(set(ours)) > 2, f"sizes {sorted(set(theirs))} and {sorted(set(ours))}"
    )


# By the name that the line before calls.
COMPARED = {
    "Trainer": clipped,
    "EMAWeightAveraging": lightnings_average,
    "StochasticWeightAveraging": stochastic,
    "BackboneFinetuning": opening,
    "SequentialLR": annealed,
    "ReduceLROnPlateau": falling,
    "FinetuningScheduler": opening,
    "ModelEmaV3": timms_average,
    "CosineLRScheduler": annealed_by_epochs,
    "adaptive_clip_grad": adaptive,
    "Mixup": mixed,
    "EMA": composers_average,
    "GradientClipping": under_composer,
    "LabelSmoothing": under_composer,
    "ProgressiveResizing": resized,
    "SAM": under_composer,
}
CASES = [
    Case(
        f"`{row.after}` for {row.whose} `{row.before}`".replace("for  ", "for "),
        partial(COMPARED[row.before.partition("(")[0]], row),
        needs=PEERS[row.whose][0],
    )
    for row in rows()
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
