"""Each technique has ranges that it accepts, or a reason why it is not searched."""

from __future__ import annotations

import pytest

import lightning_tricks as lt
from lightning_tricks.study.ranges import NOT_SEARCHED, RANGES
from lightning_tricks.study.recommended import recommended
from lightning_tricks.study.subjects import Factory
from tests.contract.cases import CASES
from tests.study.small import build


def test_each_technique_has_ranges_or_a_reason():
    assert set(RANGES) | set(NOT_SEARCHED) == set(CASES)
    assert not set(RANGES) & set(NOT_SEARCHED)


@pytest.mark.parametrize("name", RANGES)
def test_each_technique_takes_all_values_of_its_ranges(name):
    subject = Factory(build, {name: CASES[name].active()})
    space = recommended(subject)
    space.check(subject.default(space))
    for setting, values in space.techniques[name].settings.items():
        for end in values.ends:
            subject.technique(name, {setting: end})
    assert space.techniques[name].optional


def test_each_range_is_of_a_setting_with_a_plain_default():
    needed = {
        "Mixup": {"classes": 3},
        "CutMix": {"classes": 3},
        "NormPenalty": {"l1": 1e-5, "l2": 1e-5},
        "PlateauDecay": {"monitor": "val_loss"},
        "ProgressiveUnfreeze": {"stages": ["*"]},
    }
    for name, given in RANGES.items():
        if given:
            technique = getattr(lt, name)(**needed.get(name, {}))
            found = recommended(Factory(build, {name: technique})).techniques[name].settings
            assert {key: each.plain() for key, each in found.items()} == given


def test_ranges_are_widened_to_what_is_configured():
    callbacks = {
        "clip": lt.GradientClip(max_norm=50.0),
        "warmup": lt.WarmupCosine(warmup="3%"),
        "EMA": lt.EMAWeights(decay=lt.HalfLife("1 epoch")),
        "report": lt.RunReport(),
    }
    found = recommended(Factory(build, callbacks)).techniques
    assert found["clip"].settings["max_norm"].plain() == {"low": 0.1, "high": 50.0, "log": True}
    assert found["warmup"].settings["warmup"].plain() == ["1%", "5%", "10%", "20%", "3%"]
    assert not found["EMA"].settings  # a policy stays as it is
    assert "report" not in found
    orthogonal = {"init": lt.WeightInit(scheme="orthogonal", nonlinearity="tanh")}
    (scheme,) = recommended(Factory(build, orthogonal)).techniques["init"].settings.values()
    assert scheme.plain() == ["kaiming_normal", "kaiming_uniform", "orthogonal"]  # which ask for one
    with pytest.raises(ValueError, match="space must be given .* got \\['report'\\]"):
        recommended(Factory(build, {"report": lt.RunReport()}))
