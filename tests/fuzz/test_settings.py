"""Any value of any setting is refused by name, or survives being written down and trains."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback

import lightning_tricks as lt
from lightning_tricks.averaging.ema_decay import EMADecay
from lightning_tricks.core.collect import SnapshotPolicy
from lightning_tricks.core.notation import FUNCTIONS
from lightning_tricks.core.schedule import Schedule
from lightning_tricks.fusion.methods import FusionMethod, TensorwiseMethod
from lightning_tricks.gradients.surgery_methods import SurgeryMethod
from lightning_tricks.gradients.thresholds import AdaptiveThreshold
from lightning_tricks.lifecycle.evaluation import MissingMetricError
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.network.openings import Trigger
from lightning_tricks.objectives.adversarial_losses import AdversarialLoss
from lightning_tricks.objectives.critic_penalties import CriticPenalty
from lightning_tricks.objectives.loss_balance import LossBalance
from tests.contract.cases import CASES
from tests.contract.gan_toy import Plays
from tests.contract.mixing import balanced, optimized
from tests.contract.old_task import OldTask
from tests.fuzz.effort import LONG, SHORT, examples
from tests.fuzz.values import CORNERS, anything, is_plain, shown
from tests.fuzz.verdicts import Batches, refusal
from tests.toys import Loader, Toy, trainer

NAMES = {name: getattr(lt, name) for name in lt.__all__}
LIVE = {lt.Probe, lt.Teacher, lt.Teachers, lt.Ablation, lt.Search}  # hold modules, data or functions
BUILT = [
    kind
    for kind in NAMES.values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in LIVE
]
# Built, but not tried in a run: a generator must make vectors of a size, or images; losses have these names.
FITTED = (lt.Latent, lt.SampleGrid, lt.FixedWeights, lt.UncertaintyBalance)
# What policies and schedules need, by the type of a setting without default; techniques have their cases.
SAMPLES = {
    **{"int": 1, "float": 0.5, "str": "val_loss", "int | str": 1, "Sequence[int | str]": [1]},
    **{"float | str | Schedule": 0.1, "Patterns": "pair.generator"},  # of LayerNoise
    **{"tuple[float, ...]": (1.0, 3.0), "tuple[str, ...]": ("a.pt", "b.pt")},
    "Mapping[str, str]": {"fit": "classification", "size": "regression"},
    "dict[str, TensorwiseMethod]": {"head": lt.Slerp(0.5), "*": lt.Average()},
    "tuple[TensorwiseMethod, ...]": (lt.Slerp(0.0), lt.Slerp(1.0)),
}
HIDDEN = {name: ["hidden"] for name in ("body.0.bias", "body.1.weight", "body.1.bias")}
HIDDEN |= {f"body.1.running_{name}": ["hidden"] for name in ("mean", "var")}
HIDDEN |= {"body.0.weight": ["hidden", None], "head.weight": [None, "hidden"]}
# What defaults do not know of the toy.
GIVEN: dict[Callable[..., Any], dict[str, Any]] = {
    lt.inverse_sqrt: {"timescale": 1},  # by default the length of a warm-up, and here there is none
    lt.GradNorm: {"params": "body"},
    lt.Aligned: {"spec": {**HIDDEN, "head.bias": None, "body.1.num_batches_tracked": None}},
}
METRIC: dict[str, Any] = {"monitor": "val_loss", "mode": "min"}
HOSTS: dict[type, Callable[[Any], Callback]] = {
    Technique: lambda technique: technique,
    FusionMethod: lambda method: lt.WeightFusion(
        method=method, collect=lt.EverySteps(1, method.count or max(method.least, 2)), **METRIC
    ),
    SnapshotPolicy: lambda policy: lt.WeightFusion(collect=policy, **METRIC),
    SurgeryMethod: lambda method: lt.GradientSurgery(method=method),
    AdaptiveThreshold: lambda policy: lt.GradientClip(max_norm=policy),
    EMADecay: lambda policy: lt.EMAWeights(decay=policy),
    Trigger: lambda trigger: lt.ProgressiveUnfreeze(stages=["head", "body"], at=trigger),
    lt.OptimizerSettings: lambda settings: optimized(lambda _: settings),
    LossBalance: balanced,
    Schedule: lambda schedule: lt.GradientClip(max_norm=schedule),
    AdversarialLoss: lambda loss: Plays(adversarial_loss=loss, noisy_labels=None),
    CriticPenalty: lambda penalty: Plays(penalties=penalty),
    lt.Player: lambda player: Plays(generator_optimizer=player, critic_optimizer=player),
    lt.NoisyLabels: lambda labels: Plays(noisy_labels=labels),
    lt.LayerNoise: lambda noise: Plays(layer_noise=noise),
    lt.FailureSignals: lambda signals: Plays(failure_signals=signals),
}

# Refused by the name of the setting that it does not fit.
WITH = {"method": "collect"}


def parameters(thing: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the settings of what builds a technique, a policy or a schedule."""
    # The signature of a technique itself is that of ``__new__``.
    found = inspect.signature(thing.__init__ if isinstance(thing, type) else thing).parameters
    return {name: each for name, each in found.items() if name != "self"}


def valid(thing: Callable[..., Any]) -> dict[str, Any]:
    """Return settings that build ``thing``."""
    if isinstance(thing, type) and issubclass(thing, Technique):
        active = CASES[thing.__name__].active()
        return {field.name: getattr(active, field.name) for field in dataclasses.fields(active) if field.init}
    needed = {
        name: SAMPLES[str(each.annotation)]
        for name, each in parameters(thing).items()
        if each.default is inspect.Parameter.empty
    }
    return {**needed, **GIVEN.get(thing, {})}


SETTINGS = [
    pytest.param(thing, name, id=f"{thing.__name__}-{name}")
    for thing in [*BUILT, *FUNCTIONS.values()]
    for name in parameters(thing)
    # The label is the base class's, and is tried on one technique; in a long run on all.
    if name != "label" or thing is lt.GradientClip or LONG
]


@pytest.mark.parametrize(("thing", "name"), SETTINGS)
@given(value=anything())
@examples(8)
def test_any_value_is_refused_by_name_or_trains(thing: Callable[..., Any], name: str, value: Any) -> None:
    is_refused_or_trains(thing, name, value)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("thing", "name"), SETTINGS)
def test_so_is_each_corner_or_trains(thing: Callable[..., Any], name: str) -> None:
    for corner in CORNERS:
        try:
            is_refused_or_trains(thing, name, corner)
        except BaseException as error:
            error.add_note(f"with {name}={corner!r}")
            raise


def is_refused_or_trains(thing: Callable[..., Any], name: str, value: Any) -> None:
    try:
        built = thing(**{**valid(thing), name: value})
    except Exception as error:
        named = WITH.get(name, name) if WITH.get(name, name) in str(error) else name
        assert not (why := refusal(error, named)), why
        assert shown(value, str(error)), f"{value!r} is not shown: {error}"
        return
    if is_plain(value):
        for again in (
            eval(repr(built), {**NAMES, "np": np, "OldTask": OldTask}),
            pickle.loads(pickle.dumps(built)),
        ):
            assert repr(again) == repr(built)
            assert isinstance(built, Technique) or again == built
        if SHORT and crc32(repr(built).encode()) % 8:
            return  # the same eighth of them trains each time
    works(built, [name])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__name__) for kind in BUILT])
@given(data=st.data())
@examples(8)
def test_settings_that_are_right_alone_are_refused_by_name_or_train_together(
    kind: type, data: st.DataObject
) -> None:
    names = list(parameters(kind))
    settings = {name: data.draw(st.sampled_from(accepted(kind, name)), label=name) for name in names}
    try:
        built = kind(**settings)
    except Exception as error:
        assert not (why := refusal(error)), why
        assert any(name in str(error) for name in names), error
        return
    works(built, names)


@cache
def accepted(kind: type, name: str) -> list[Any]:
    """Return the corners that ``kind`` takes for ``name``, all else as in its case, and what that has."""
    found = [valid(kind).get(name, parameters(kind)[name].default)]
    for corner in CORNERS:
        with suppress(Exception):
            kind(**{**valid(kind), name: corner})
            found.append(corner)
    return found


def works(built: Any, names: Collection[str]) -> None:
    """Assert that what was built does its work, or is refused by one of ``names``."""
    if isinstance(built, FITTED):
        return
    # In a run the methods of fusion differ by the tensors that they make alone.
    if isinstance(built, TensorwiseMethod) and not isinstance(built, lt.Average | lt.Interpolate):
        fuses(built, names)
        return
    host = next(host for kind, host in HOSTS.items() if isinstance(built, kind))
    with TemporaryDirectory() as folder:
        trains(lambda: host(built), names, Path(folder))


def fuses(method: TensorwiseMethod, names: Collection[str]) -> None:
    """Assert that ``method`` fuses models, and leaves their shapes and types, or is refused by ``names``."""
    models = [Toy().state_dict() for _ in range(method.count or max(method.least, 2))]
    for index, model in enumerate(models):
        model["head.bias"] = model["head.bias"] + index * torch.tensor([0.1, 0.2, -0.1])
        model["body.0.weight"] = model["body.0.weight"].roll(index).bfloat16()
    try:
        fused = method.fuse(models)
    except FileNotFoundError:
        return  # those of the sample are nowhere
    except Exception as error:
        assert not (why := refusal(error)), why
        assert any(name in str(error) for name in names), error
        return
    assert {n: (v.shape, v.dtype) for n, v in fused.items()} == {
        n: (v.shape, v.dtype) for n, v in models[0].items()
    }


def trains(build: Callable[[], Callback], names: Collection[str], folder: Path) -> None:
    """Assert that two steps with a technique go well and save, or are refused before by one of ``names``."""
    seen = Batches()
    try:
        given = build()
        module = CASES[type(given).__name__].adapt(Toy()) if isinstance(given, Technique) else Toy()
        runner = trainer(given, seen, max_epochs=1, num_sanity_val_steps=1, default_root_dir=folder)
        runner.fit(module, Loader(2), Loader(1, fixed=True))
    except Exception as error:
        assert not (why := refusal(error)), why
        by_value = "every value of" in str(error)  # that is how schedules are refused
        assert by_value or any(name in str(error) for name in names), error
        assert seen.count == 0 or isinstance(error, MissingMetricError), f"refused too late: {error}"
        return
    runner.save_checkpoint(folder / "a.ckpt")
    torch.load(folder / "a.ckpt", weights_only=True)
