"""Progressive resizing: training begins on small images, which grow to their full size.

    side <- multiple * round(scale * side / multiple),    at least multiple, and at most side

for each side of the inputs, with a ``scale`` that rises to 1 over training; there sides are what they were,
multiples or not. Images are made smaller by bilinear interpolation with a filter as wide as the pixels of the
small image (antialiasing), signals likewise.

References: Howard, "Training Imagenet in 3 hours for $25; and CIFAR10 for $0.26", 2018,
https://www.fast.ai/posts/2018-04-30-dawnbench-fastai.html; Tan and Le, "EfficientNetV2: Smaller Models and
Faster Training", 2021, https://arxiv.org/abs/2104.00298, section 4; Touvron et al., "Fixing the train-test
resolution discrepancy", 2019, https://arxiv.org/abs/1906.06423, for what a network makes of sizes it was not
trained on; for the schedule by default and the multiples MosaicML, "Progressive Image Resizing",
https://docs.mosaicml.com/projects/composer/en/latest/method_cards/progressive_resizing.html.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from torch import Tensor
from torch.nn.functional import interpolate

from lightning_tricks.core import checks
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.lifecycle.batch_edits import edit_batches
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.objectives.batch_entries import check_place, replaced_entries, taken_entry

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["ProgressiveResizing", "resized", "scaled_side"]


def scaled_side(side: int, *, scale: float, multiple: int) -> int:
    """Return the length that ``side`` has at a ``scale``, in pixels.

    Args:
        side: The full length, in pixels, at least 1.
        scale: In (0, 1].
        multiple: What lengths below the full one are multiples of, at least 1.

    Example:
        >>> [scaled_side(30, scale=scale, multiple=4) for scale in (0.01, 0.5, 0.99, 1.0)]
        [4, 16, 28, 30]
    """
    if scale == 1.0:
        return side
    nearest = multiple * math.floor(scale * side / multiple + 0.5)
    return min(max(nearest, multiple), side)


def resized(inputs: Tensor, *, scale: float, multiple: int) -> Tensor:
    """Return ``inputs`` with sides of :func:`scaled_side`; themselves where these are their own.

    Args:
        inputs: Images, shape (n, channels, height, width), or signals, shape (n, channels, length); floating.
        scale: In (0, 1].
        multiple: Of the sides, at least 1; less than one of them.

    Raises:
        TypeError: If ``inputs`` are not floating.
        ValueError: If they are of another shape, or have no side that could be shorter.

    Example:
        >>> import torch
        >>> resized(torch.tensor([[[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]]), scale=0.5, multiple=3)
        tensor([[[0.0000, 0.5000, 1.0000]]])
    """
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must be floating to be resized, got {inputs.dtype}")
    shape = tuple(inputs.shape)
    if len(shape) not in (3, 4):
        raise ValueError(
            "inputs must be images, shape (n, channels, height, width), or signals, shape (n, channels, "
            f"length), to be resized, got shape {shape}"
        )
    if max(shape[2:]) <= multiple:
        raise ValueError(f"multiple must be less than a side of the inputs, got {multiple} for shape {shape}")
    sides = [scaled_side(side, scale=scale, multiple=multiple) for side in shape[2:]]
    if sides == list(shape[2:]):
        return inputs
    images = inputs if len(shape) == 4 else inputs[:, :, None]
    size = sides if len(sides) == 2 else [1, *sides]
    wide = images.float() if inputs.dtype.itemsize < 4 else images  # CPUs filter no half precision
    small = interpolate(wide, size=size, mode="bilinear", antialias=True).to(inputs.dtype)
    return small if len(shape) == 4 else small[:, :, 0]


@final
@dataclass(eq=False, repr=False, kw_only=True)
class ProgressiveResizing(Technique):
    """Train on small images first, and on larger ones to the full size (:func:`resized`).

    Sizes follow a schedule, so that early steps cost less; evaluations see the full size.

    * **When** as a training batch has come to its device, before training sees it and before it is mixed; all
      batches of an accumulation have one size. Never in evaluations, and not for batches that other
      techniques only look at, so that statistics of BatchNorm that are estimated anew are those of full size.
    * **Changes** the inputs that training gets, which are smaller; labels stay as they are.
    * **Logs** ``progressive_resizing/scale``, as scheduled, and ``progressive_resizing/size``, the length of
      the inputs' last axis in pixels.
    * **Saves** nothing but how the schedule lies.
    * **Cost** less than none: a step on images of half the height and width computes a quarter. A compiled
      module is compiled anew for new sizes, and a GPU may choose its kernels anew: a larger ``multiple``
      makes fewer sizes.
    * **Use** it for networks that take images or signals of any size, such as convolutions with a mean over
      pixels before the head, where training is long; **not** where the network wants one size, where labels
      or outputs are places in the image, such as boxes, masks and images, nor where details decide and inputs
      are small as it is.

    Evaluations see the full size, for which a network that has seen smaller images only is not fit (Touvron
    et al.): let the schedule reach 1 before the end, as the one by default does for the last fifth.

    On digits enlarged to 32x32, 20 epochs take 6.5 s of a processor instead of 11.7 s, and accuracy is 97.5 %
    instead of 98.2 %; 11 epochs on the full size, which take as long, reach 94.2 % (each of five seeds says
    so). Digits of 8x8, as they are, lose more, from 99.0 % to 93.2 %; and who trains on half of 32x32 to the
    end is right about 21 % of the full size (``python -m benchmarks.resizing``).

    Args:
        scale: What each side of the inputs is multiplied by, in (0, 1]; a number, a schedule or its text. By
            default half of the run at a half, then up to the full size.
        multiple: Of which the sides are multiples as long as they are not full, in pixels; at least 1. Where
            a network halves sides, take what it divides them by in all.
        inputs: Place or key of the inputs in a batch that is a tuple, list or dictionary: images, shape (n,
            channels, height, width), or signals, shape (n, channels, length).

    Example:
        A small residual network takes images of any size; 256 handwritten digits have 8x8 pixels.
        ``DigitsClassifier`` trains any network on them by cross entropy and SGD; with ``QUIET`` the Trainer
        shows no bars and writes no files.

        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import LambdaCallback
        >>> from lightning_tricks import ProgressiveResizing, to_yaml
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> from lightning_tricks.recipes.residual import ResidualNet

        We write down how wide the images are that each stage gets:

        >>> seen = {"training": [], "validation": []}
        >>> look = LambdaCallback(
        ...     on_train_batch_start=lambda *now: seen["training"].append(now[2][0].shape[-1]),
        ...     on_validation_batch_start=lambda *now: seen["validation"].append(now[2][0].shape[-1]),
        ... )
        >>> growing = ProgressiveResizing(scale="linear(to=1.0, start=0.5, over='80%')", multiple=2)
        >>> trainer = Trainer(max_epochs=3, callbacks=[growing, look], **QUIET)
        >>> trainer.fit(DigitsClassifier(ResidualNet(widths=(4, 8))), DigitsData(training=256))
        >>> seen["training"]
        [4, 4, 4, 6, 6, 6, 6, 6, 8, 8, 8, 8]
        >>> set(seen["validation"])
        {8}

        The same for LightningCLI, with all settings there are:

        >>> print(to_yaml(growing), end="")
        trainer:
          callbacks:
          - class_path: lightning_tricks.ProgressiveResizing
            init_args:
              scale: linear(to=1.0, start=0.5, over='80%')
              multiple: 2
              inputs: 0
    """

    scale: float | str | Schedule = "constant(0.5, over='50%') >> linear(to=1.0, over='30%')"
    multiple: int = 4
    inputs: int | str = 0
    _course: Course | None = field(default=None, init=False, repr=False)
    _end: Callable[[], None] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        as_schedule("scale", self.scale, 0.0, 1.0, open_low=True)
        checks.whole("multiple", self.multiple, 1)
        check_place("inputs", self.inputs)

    def claims(self) -> Iterator[Claim]:
        yield self.claim(f"size of {self.inputs!r} in a batch", None)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._course = self.lay(trainer, "scale", as_schedule("scale", self.scale))
        self._end = edit_batches(trainer, "size", self._resized, looked_at=False)

    def _resized(self, batch: Any) -> Any:
        assert self._course is not None
        inputs = taken_entry(batch, self.inputs, name="inputs")
        small = resized(inputs, scale=self._course(self.clock.position), multiple=self.multiple)
        return batch if small is inputs else replaced_entries(batch, {self.inputs: small})

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self._course is not None
        size = taken_entry(batch, self.inputs, name="inputs").shape[-1]
        self.report(trainer, pl_module, scale=self._course(self.clock.position), size=float(size))

    def undo(self) -> None:
        if self._end is not None:
            self._end()
        self._end = None
