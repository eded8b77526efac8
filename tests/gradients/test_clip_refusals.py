from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_tricks import ConflictError, GradientClip
from tests.toys import Loader, Toy, trainer


class OwnClipping(Toy):
    def configure_gradient_clipping(self, *args: Any, **settings: Any) -> None:
        pass


def test_second_owners_of_clipping_are_refused() -> None:
    with pytest.raises(
        ConflictError, match=r"Trainer\(gradient_clip_val=0.5\) and GradientClip: remove grad"
    ):
        trainer(GradientClip(), gradient_clip_val=0.5).fit(Toy(), Loader())
    with pytest.raises(ConflictError, match="OwnClipping.configure_gradient_clipping and GradientClip"):
        trainer(GradientClip()).fit(OwnClipping(), Loader())


def test_lbfgs_cannot_skip() -> None:
    with pytest.raises(ValueError, match="non_finite must be 'raise' or 'keep' with LBFGS, got 'skip'"):
        trainer(GradientClip()).fit(Toy(optimizer="LBFGS"), Loader())


def test_parameters_that_no_optimizer_steps_are_refused() -> None:
    class Partial(Toy):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    with pytest.raises(ValueError, match="params must match a parameter of an optimizer, got 'body'"):
        trainer(GradientClip(params="body")).fit(Partial(), Loader())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_norm": -1.0}, r"max_norm must lie in \[0.0, inf\], got -1.0"),
        ({"max_norm": "cosin()"}, "max_norm must be a number or written like .*may call .*not 'cosin'"),
        ({"max_norm": None}, "max_norm or max_value must be given"),
        ({"max_value": math.nan}, "max_value must be a number, got nan"),
        ({"norm_type": 0}, r"norm_type must lie in \(0.0, inf\], got 0"),
        ({"norm_type": "2"}, "norm_type must be a number, got '2'"),
        ({"params": ()}, "params must name at least one pattern"),
        ({"non_finite": "skpi"}, "did you mean 'skip'"),
        ({"max_nrom": 1.0}, "GradientClip has no setting 'max_nrom'; did you mean 'max_norm'"),
    ],
)
def test_bad_settings_are_refused_in_the_constructor(bad: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        GradientClip(**bad)


def test_settings_go_by_name() -> None:
    with pytest.raises(TypeError, match=r"GradientClip takes its settings by name, got 1\.0"):
        GradientClip(1.0)
