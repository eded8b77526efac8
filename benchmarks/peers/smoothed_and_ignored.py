"""Label smoothing of six labels, of which two are to be ignored (-100), as padding and unlabelled pixels are.

Judged by the mean loss of the other four by hand, in double precision.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.parts import cut

QUESTION = "Does label smoothing leave out the labels that are to be ignored?"
SMOOTHING, CLASSES = 0.1, 3


def given() -> tuple[Tensor, Tensor]:
    """Return logits and labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, CLASSES, generator=generator), torch.tensor([0, 1, -100, 2, -100, 1])


def verdict(loss: Tensor) -> Verdict:
    """Compare with the mean by hand."""
    losses = []
    for logits, label in zip(*given(), strict=True):
        if label >= 0:
            logs = logits.double() - logits.double().exp().sum().log()
            smooth = torch.full((CLASSES,), SMOOTHING / CLASSES, dtype=torch.double)
            smooth[label] += 1 - SMOOTHING
            losses.append(-(smooth * logs).sum())
    wanted = float(torch.stack(losses).mean())
    return judged(abs(float(loss) - wanted) < 1e-5, f"a loss of {float(loss):.4f}, by hand {wanted:.4f}")


def timms() -> Verdict:
    """Ask timm's loss."""
    path = "timm/loss/cross_entropy.py"
    kind = cut("timm", path, "LabelSmoothingCrossEntropy", nn=torch.nn, torch=torch, F=F)
    return verdict(kind["LabelSmoothingCrossEntropy"](SMOOTHING)(*given()))


def composers() -> Verdict:
    """https://docs.mosaicml.com/projects/composer/en/stable/method_cards/label_smoothing.html."""
    names = ("ensure_targets_one_hot", "infer_target_type", "check_for_index_targets", "_one_hot")
    utils = cut("mosaicml", "composer/loss/utils.py", *names, torch=torch, warnings=warnings)
    smooth = cut(
        "mosaicml",
        "composer/algorithms/label_smoothing/label_smoothing.py",
        "smooth_labels",
        ensure_targets_one_hot=utils["ensure_targets_one_hot"],
    )["smooth_labels"]
    logits, labels = given()
    return verdict(F.cross_entropy(logits, smooth(logits, labels, smoothing=SMOOTHING)))


CASES = [
    Case(
        "`smoothed_cross_entropy`",
        lambda: verdict(lt.smoothed_cross_entropy(*given(), smoothing=SMOOTHING)),
    ),
    Case(
        "torch `cross_entropy(label_smoothing=...)`",
        lambda: verdict(F.cross_entropy(*given(), label_smoothing=SMOOTHING)),
        "torch",
    ),
    Case("timm `LabelSmoothingCrossEntropy`", timms, "timm"),
    Case("Composer `smooth_labels`", composers, "mosaicml"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
