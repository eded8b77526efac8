"""Whatever a module is made of: a technique refuses it before the first batch, or is right."""

from __future__ import annotations

import glob
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer

import lightning_tricks as lt
from lightning_tricks.lifecycle.technique import Technique
from tests.contract.cases import CASES, MIXINS
from tests.fuzz.effort import examples
from tests.fuzz.parts import NAMES, PARTS, Patchwork, bits, everything
from tests.fuzz.verdicts import Batches, refusal
from tests.toys import Loader, StopAfter, StopError, assert_equal, trainer

# Settings that change a run of any module; without an entry here, a technique runs with neutral ones only.
ACTIVE: dict[str, Callable[[Patchwork], Technique]] = {
    "AdaptiveGradientClip": lambda _: lt.AdaptiveGradientClip(clip=0.02),
    "DropoutSchedule": lambda _: lt.DropoutSchedule(schedule="linear(to=0.9, start=0.3)"),
    "EMAWeights": lambda _: lt.EMAWeights(decay=0.9, buffers="average", decay_warmup=False),
    "ElasticWeightConsolidation": lambda _: lt.ElasticWeightConsolidation(strength=5.0, data=Loader(1)),
    "Freeze": lambda module: lt.Freeze(params=lt.propose_stages(module)[-1], at=1, dropout="off"),
    "GradientClip": lambda _: lt.GradientClip(max_norm=0.1),
    "GradientCentralization": lambda _: lt.GradientCentralization(),
    "GradientNoise": lambda _: lt.GradientNoise(variance=0.1),
    "GradientSurgery": lambda _: lt.GradientSurgery(),
    "LSUV": lambda _: lt.LSUV(),
    "LabelSmoothing": lambda _: lt.LabelSmoothing(smoothing="0.5 * step(every=1, gamma=0.5)"),
    "LearningRate": lambda _: lt.LearningRate(schedule="cyclic(2, to=0.1)"),
    "CutMix": lambda module: lt.CutMix(classes=module.outputs),
    "Mixup": lambda module: lt.Mixup(classes=module.outputs),
    "NormPenalty": lambda _: lt.NormPenalty(l1=0.1, proximal=True, params="*"),
    "Lookahead": lambda _: lt.Lookahead(k=2),
    "PlateauDecay": lambda _: lt.PlateauDecay(monitor="val_loss", patience=1, min_delta=1e3),
    "PostHocEMA": lambda _: lt.PostHocEMA(every=2, snapshot_every=1),
    "PreciseBatchNorm": lambda _: lt.PreciseBatchNorm(batches=2),
    "ReplaceNorm": lambda _: lt.ReplaceNorm(to="group", groups=2),
    "ProgressiveUnfreeze": lambda module: lt.ProgressiveUnfreeze(
        stages=lt.propose_stages(module), at=1, warmup=1
    ),
    "SWAWeights": lambda _: lt.SWAWeights(start=1, every=1, lr="50%", batches=2),
    "LAWA": lambda _: lt.LAWA(k=2, every=1, batches=2),
    "ScheduleFree": lambda _: lt.ScheduleFree(),
    "SharpnessAware": lambda _: lt.SharpnessAware(rho=0.5),
    "SpectralNorm": lambda _: lt.SpectralNorm(n_power_iterations=2),
    "WarmupCosine": lambda _: lt.WarmupCosine(warmup=1),
    "WeightInit": lambda _: lt.WeightInit(scheme="normal", std=0.5),
    "ZeroInitResidual": lambda _: lt.ZeroInitResidual(last="head"),
    "WeightFusion": lambda _: lt.WeightFusion(collect=lt.EverySteps(1, k=2), keep="always"),
}


def neutral(name: str, module: Patchwork) -> Technique:
    """Return what changes no bit of a run; the case of unfreezing would open what is frozen."""
    learning = [glob.escape(each) for each, p in module.named_parameters() if p.requires_grad]
    if name == "ProgressiveUnfreeze" and learning:
        return lt.ProgressiveUnfreeze(stages=[tuple(learning)])
    return CASES[name].neutral()


def modules() -> st.SearchStrategy[Callable[[], Patchwork]]:
    kinds = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(sorted(PARTS)), max_size=4)
    return st.builds(
        lambda parts, head, foreign: lambda: Patchwork(parts, head=head, foreign=foreign),
        kinds,
        st.sampled_from([True, True, False]),
        st.sampled_from([False, False, True]),
    )


def fit(
    build: Callable[[], Patchwork],
    technique: Callable[[Patchwork], Technique] | None,
    root: Path,
    *others: Callback,
    ckpt_path: Path | None = None,
) -> tuple[Patchwork, Trainer]:
    """Train three steps and validate."""
    module = build()
    used = [] if technique is None else [technique(module)]
    runner = trainer(*used, *others, max_epochs=1, default_root_dir=root)
    runner.fit(module, Loader(3), Loader(1, seed=9, fixed=True), ckpt_path=ckpt_path)
    return module, runner


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.:UserWarning")
@pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning")
@pytest.mark.parametrize("name", [name for name in CASES if name not in MIXINS])
@given(build=modules())
@examples(10)
def test_a_technique_refuses_a_module_or_is_right(name: str, build: Callable[[], Patchwork]) -> None:
    with TemporaryDirectory() as folder:
        right_or_refused(name, build, Path(folder))


def right_or_refused(name: str, build: Callable[[], Patchwork], root: Path) -> None:
    plain, _ = fit(build, None, root / "plain")
    settings = [] if "neutral" in CASES[name].exempt else [partial(neutral, name)]
    for technique in [*settings, *([ACTIVE[name]] if name in ACTIVE else [])]:
        seen = Batches()
        try:
            module, runner = fit(build, technique, root / "whole", seen)
        except Exception as error:
            assert not (why := refusal(error)), why
            assert seen.count == 0, f"refused too late: {error}"
            continue
        if technique is not ACTIVE.get(name) and any(p.requires_grad for p in build().parameters()):
            assert_equal(everything(module), everything(plain))
        holds_the_live_weights(runner, module, plain, root / "end.ckpt")
        saved = root / "parts" / "stopped.ckpt"
        with pytest.raises(StopError):
            fit(build, technique, root / "parts", StopAfter(2, saved))
        resumed, _ = fit(build, technique, root / "parts", ckpt_path=saved)
        assert_equal(everything(resumed), everything(module))


def holds_the_live_weights(runner: Trainer, module: Patchwork, plain: Patchwork, path: Path) -> None:
    """Assert that those beside an average are the weights of ``plain``, in memory and in a checkpoint."""
    for average in runner.callbacks:
        if isinstance(average, lt.EMAWeights):
            before = everything(module)
            with average.live_weights():
                assert_equal(everything(module), everything(plain))
            assert_equal(everything(module), before)
            runner.save_checkpoint(path)
            live = {name: bits(value) for name, value in lt.live_state(path).items()}
            assert_equal(live, {name: bits(value) for name, value in plain.state_dict().items()})
