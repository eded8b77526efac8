"""What holds for every technique, in every regime: the laws of the contract."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from packaging.version import Version

import lightning_tricks
from lightning_tricks.lifecycle.technique import Technique
from tests.contract.adapting import as_it_is
from tests.contract.cases import CASES, MIXINS, Case
from tests.contract.from_yaml import from_yaml
from tests.contract.old_task import OldTask
from tests.contract.regimes import ON_GPU, REGIMES, Regime, needs_gpu
from tests.fuzz.verdicts import Batches
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights


def law(name: str) -> pytest.MarkDecorator:
    """Run a test for every technique that law ``name`` applies to."""
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=key) for key, case in CASES.items() if name not in case.exempt]
    )


ALL_REGIMES = {**REGIMES, **ON_GPU}

# ``make test`` tries the first with all techniques, others with half, and combinations of two with a quarter.
every_regime = pytest.mark.parametrize(
    "regime",
    [
        *(
            pytest.param(regime, id=name, marks=pytest.mark.sampled(4 if ", " in name else min(index, 1) + 1))
            for index, (name, regime) in enumerate(REGIMES.items())
        ),
        *(pytest.param(regime, id=name, marks=needs_gpu) for name, regime in ON_GPU.items()),
    ],
)


@pytest.fixture(autouse=True)
def _compiled_modules_see_openings(request: pytest.FixtureRequest) -> None:
    name, blind = request.node.name, Version(torch.__version__) < Version("2.12")
    if blind and "[ProgressiveUnfreeze" in name and "-compiled" in name:
        pytest.skip("compiled modules do not see requires_grad change: pytorch/pytorch#139476")


@pytest.fixture(autouse=True)
def _refused_regimes_have_a_test_of_their_own(request: pytest.FixtureRequest) -> None:
    values = getattr(request.node, "callspec", None) and request.node.callspec.params
    if values and {"case", "regime"} <= values.keys() and "refusal" not in request.node.name:
        name = next(name for name, regime in ALL_REGIMES.items() if regime is values["regime"])
        if name.removesuffix(" on a GPU") in values["case"].refused:
            pytest.skip("refused, as the test of refusals shows")


def fit(
    regime: Regime,
    *techniques: Callback,
    adapt: Callable[[Toy], Toy] = as_it_is,
    ckpt_path: Path | None = None,
    root: Path | None = None,
) -> tuple[Toy, Trainer]:
    """Train three epochs with validation and return the module and its Trainer."""
    module = adapt(regime.module())
    runner = trainer(*techniques, default_root_dir=root, **regime.settings())
    runner.fit(module, Loader(), Loader(2, seed=9, fixed=True), ckpt_path=ckpt_path)
    return module, runner


@cache
def plain(regime: Regime, adapt: Callable[[Toy], Toy]) -> tuple[dict[str, Any], list[Any]]:
    """Return the weights and the optimizers' states after a run without any technique."""
    module, runner = fit(regime, adapt=adapt)
    return weights(module), [optimizer.state_dict()["state"] for optimizer in runner.optimizers]


def full_state(runner: Trainer, path: Path) -> dict[str, Any]:
    """Return what a checkpoint of ``runner`` holds: weights, optimizers, techniques."""
    runner.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    return {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "callbacks")}


@every_regime
@law("neutral")
def test_neutral_setting_changes_no_bit(case: Case, regime: Regime, tmp_path: Path) -> None:
    module, runner = fit(regime, case.neutral(), root=tmp_path, adapt=case.adapt)
    states = [optimizer.state_dict()["state"] for optimizer in runner.optimizers]
    assert_equal(plain(regime, case.adapt), (weights(module), states))


# Never in the middle of an accumulation, whose gradients no checkpoint holds, and never after the last batch
# of an epoch, but before its validation, which Lightning then leaves out.
STOPS = [
    ("on_train_batch_end", 4),
    ("on_train_batch_end", 9),
    ("on_validation_end", 1),
    ("on_train_epoch_end", 2),
]
# All of them in the first regime, and one in each of the others, in turn.
every_stop = pytest.mark.parametrize(
    ("regime", "stop"),
    [
        pytest.param(*values, stop, id=f"{entry.id}-{stop}", marks=entry.marks)
        for index, entry in enumerate(every_regime.args[1])
        for values in [entry.values]
        for stop in (STOPS if index == 0 else [STOPS[index % len(STOPS)]])
    ],
)


@every_stop
@law("resume")
def test_an_active_run_differs_and_resumes(
    case: Case, stop: tuple[str, int], regime: Regime, tmp_path: Path
) -> None:
    whole, whole_runner = fit(regime, case.active(), root=tmp_path / "whole", adapt=case.adapt)
    if "active" not in case.exempt:
        with pytest.raises(AssertionError):
            assert_equal(plain(regime, case.adapt)[0], weights(whole))
    saved = tmp_path / "parts" / "stopped.ckpt"
    hook, count = stop
    with pytest.raises(StopError):
        fit(regime, case.active(), StopAfter(count, saved, hook), root=tmp_path / "parts", adapt=case.adapt)
    parts, runner = fit(regime, case.active(), ckpt_path=saved, root=tmp_path / "parts", adapt=case.adapt)
    assert_equal(weights(whole), weights(parts))
    assert_equal(full_state(whole_runner, tmp_path / "a.ckpt"), full_state(runner, tmp_path / "b.ckpt"))


@pytest.mark.parametrize(
    ("case", "regime"),
    [
        pytest.param(case, REGIMES[name], id=f"{key}-{name}")
        for key, case in CASES.items()
        for name in case.refused
    ],
)
def test_a_refusal_comes_before_the_first_batch(
    case: Case, regime: Regime, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seen = Batches()
    name = next(name for name, known in REGIMES.items() if known is regime)
    with pytest.raises(ValueError, match=case.refused[name]) as caught:
        fit(regime, case.active(), seen, root=tmp_path, adapt=case.adapt)
    assert seen.count == 0
    record_property("refused", str(caught.value).replace(type(case.active()).__name__, "it"))


@law("safe")
def test_checkpoint_holds_tensors_and_plain_values_only(case: Case, tmp_path: Path) -> None:
    technique = case.active()
    _, runner = fit(REGIMES["fp32"], technique, root=tmp_path, adapt=case.adapt)
    state = full_state(runner, tmp_path / "a.ckpt")
    assert technique.state_key in state["callbacks"]


@law("rebuild")
def test_repr_pickle_and_yaml_rebuild_it(case: Case) -> None:
    names = {name: getattr(lightning_tricks, name) for name in lightning_tricks.__all__}
    names["OldTask"] = OldTask
    for technique in (case.neutral(), case.active()):
        assert repr(eval(repr(technique), names.copy())) == repr(technique)
        assert repr(pickle.loads(pickle.dumps(technique))) == repr(technique)
        assert repr(from_yaml(technique)) == repr(technique)


@law("quiet")
def test_later_calls_on_one_trainer_neither_count_twice_nor_leave_anything(
    case: Case, tmp_path: Path
) -> None:
    technique = case.active()
    module, runner = fit(REGIMES["fp32"], technique, root=tmp_path, adapt=case.adapt)
    callbacks = list(runner.callbacks)
    before = weights(module)
    first, second = (runner.validate(module, Loader(2, seed=9, fixed=True), verbose=False) for _ in range(2))
    assert first == second
    runner.test(module, Loader(2, seed=9, fixed=True), verbose=False)
    runner.predict(module, Loader(2, seed=9, fixed=True))
    assert_equal(before, weights(module))
    runner.fit_loop.max_epochs = 4
    runner.fit(module, Loader(), Loader(2, seed=9, fixed=True))
    assert technique.clock.position == runner.global_step == 20
    assert runner.callbacks == callbacks
    assert traces(module, runner) == []


@pytest.mark.parametrize("copy", [deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
@law("copy")
def test_a_copy_after_a_run_trains_on_as_the_original_does(
    case: Case, copy: Callable[[Any], Any], tmp_path: Path
) -> None:
    pair = fit(REGIMES["fp32"], case.active(), root=tmp_path, adapt=case.adapt)
    results = []
    for module, runner in (copy(pair), pair):
        runner.fit_loop.max_epochs = 4
        runner.fit(module, Loader(), Loader(2, seed=9, fixed=True))
        results.append((weights(module), traces(module, runner)))
    assert_equal(*results)


class Breaks(Callback):
    """Raises in a training or validation batch, after it noted the module's own weights."""

    def __init__(self, hook: str) -> None:
        self.hook = hook
        self.live: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.live = weights(pl_module)
        self._break("on_train_batch_end", trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._break("on_validation_batch_end", trainer)

    def _break(self, hook: str, trainer: Trainer) -> None:
        if hook == self.hook and trainer.current_epoch == 1:
            raise StopError


@pytest.mark.sampled(3)
@every_regime
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end"])
@law("undo")
def test_an_exception_leaves_the_modules_own_weights_and_no_hooks(
    case: Case, hook: str, regime: Regime, tmp_path: Path
) -> None:
    module, breaks = case.adapt(regime.module()), Breaks(hook)
    trainable = [p.requires_grad for p in module.parameters()]
    runner = trainer(case.active(), breaks, default_root_dir=tmp_path, **regime.settings())
    with pytest.raises(StopError):
        runner.fit(module, Loader(), Loader(2, seed=9, fixed=True))
    assert_equal(breaks.live, weights(module))
    assert traces(module, runner) == []
    assert trainable == [p.requires_grad for p in module.parameters()]


def traces(module: LightningModule, runner: Trainer) -> list[str]:
    """Return the hooks and patches that a technique has left on a module and its optimizers."""
    found = [
        f"{type(part).__name__}.{kind}"
        for part in module.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        if getattr(part, kind)
    ]
    # Weights-only checkpoints reach no callback: an average stays on this one method until the next run.
    patched = {name for name in vars(module) if callable(getattr(type(module), name, None))}
    found += [f"patched {name}" for name in patched - {"on_save_checkpoint"}]
    for optimizer in runner.optimizers:
        found += [f"found_inf on {type(optimizer).__name__}"] if hasattr(optimizer, "found_inf") else []
        hooks = [
            *optimizer._optimizer_step_post_hooks.values(),
            *optimizer._optimizer_step_pre_hooks.values(),
        ]
        found += [f"hook {hook}" for hook in hooks if "lightning_tricks" in hook.__module__]
    return found


@law("documented")
def test_card_is_complete_and_names_a_source(case: Case) -> None:
    kind = type(case.active())
    card = kind.__doc__ or ""
    for heading in ("When", "Changes", "Logs", "Saves", "Cost", "Use"):
        assert f"* **{heading}**" in card, heading
    assert "**not**" in card
    assert ">>>" in card
    source = __import__(kind.__module__, fromlist=["__doc__"]).__doc__ or ""
    assert "Reference" in source


def test_every_technique_is_a_case() -> None:
    public = {name for name in lightning_tricks.__all__ if _is_technique(getattr(lightning_tricks, name))}
    mixins = {name for name in lightning_tricks.__all__ if _is_mixin(getattr(lightning_tricks, name))}
    assert mixins == set(MIXINS)
    assert public | mixins == set(CASES)
    assert all(not _is_technique(getattr(lightning_tricks, name)) for name in MIXINS)


def _is_technique(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Technique)


def _is_mixin(value: object) -> bool:
    return isinstance(value, type) and "__init_subclass__" in vars(value)
