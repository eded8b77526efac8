"""DeepSpeed cannot run on a CPU: what it would be given, and what is refused, on a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceStrategy

from lightning_tricks import ConflictError, GradientClip
from lightning_tricks.lifecycle import conductor
from lightning_tricks.lifecycle import technique as base
from lightning_tricks.lifecycle.technique import Technique
from tests.contract.cases import CASES, MIXINS
from tests.toys import Loader, Toy, assert_equal, trainer, weights


class StandIn(SingleDeviceStrategy):
    """Has DeepSpeed's configuration, and trains as one device does."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(torch.device("cpu"))
        self.config = config


@pytest.fixture(autouse=True)
def _stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (base, conductor):
        assert module.DeepSpeedStrategy is DeepSpeedStrategy
        monkeypatch.setattr(module, "DeepSpeedStrategy", StandIn)


def fit(given: Technique | None, config: dict[str, Any] | None = None) -> tuple[Toy, dict[str, Any]]:
    module, strategy = Toy(), StandIn({} if config is None else config)
    runner = trainer(*([] if given is None else [given]), strategy=strategy)
    runner.fit(module, Loader())
    return module, strategy.config


def test_a_norm_becomes_deepspeeds_own_and_gradients_are_left_alone() -> None:
    ours, config = fit(GradientClip(max_norm=0.01, non_finite="keep"))
    assert config == {"gradient_clipping": 0.01}
    assert_equal(weights(ours), weights(fit(None)[0]))
    assert fit(GradientClip(max_norm=1, non_finite="keep"), {"gradient_clipping": 1.0})[1] == config | {
        "gradient_clipping": 1.0
    }


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"max_value": 1.0}, "max_value must be None under DeepSpeed, which clips by itself, got 1.0"),
        ({"norm_type": 1.0}, "norm_type must be 2.0 under DeepSpeed"),
        ({"params": "head"}, r"params must be '\*' under DeepSpeed"),
        ({"non_finite": "skip"}, "non_finite must be 'keep' under DeepSpeed.*, got 'skip'"),
        (
            {"max_norm": "linear(to=0.1)"},
            r"max_norm must be a number under DeepSpeed, got 'linear\(to=0.1\)'",
        ),
    ],
)
def test_what_it_does_not_offer_is_refused(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        fit(GradientClip(**{"non_finite": "keep", **settings}))


def test_another_threshold_in_its_configuration_is_a_conflict() -> None:
    with pytest.raises(
        ConflictError, match="gradient_clipping of DeepSpeed's config must be left out, got 5.0"
    ):
        fit(GradientClip(non_finite="keep"), {"gradient_clipping": 5.0})


@pytest.mark.parametrize("technique", CASES)
@pytest.mark.parametrize("world", ["DeepSpeed"])
def test_cell(world: str, technique: str, record_property: Callable[[str, object], None]) -> None:
    if technique == "GradientClip":
        return  # as tested above
    if technique in {"RunReport", *MIXINS} - {"Distillation", "GANMixin"}:  # which bring a technique along
        fit(CASES[technique].active())
        return
    with pytest.raises(ValueError, match=f"^{technique}.* needs gradients and weights in reach") as refused:
        fit(CASES[technique].active())
    record_property("refused", str(refused.value).replace(technique, "It"))
