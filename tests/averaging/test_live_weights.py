"""What may be done while ``live_weights`` holds the live weights in the module after fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.core.collect import LastEpochs
from lightning_tricks.fusion.fusion import WeightFusion
from lightning_tricks.lifecycle.technique import Technique
from tests.averaging.watching import Watch, every_kind, live_of, watched
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights

VALIDATION = Loader(2, seed=9)
REFUSED = r"fit must be called outside live_weights\(\): leave the context first"


def fitted(folder: Path, *techniques: Technique) -> tuple[Toy, Watch, Trainer]:
    """Fit two epochs, and leave the Trainer with one more to do."""
    module, watch = Toy(), Watch()
    runner = trainer(*techniques, watch, max_epochs=2, default_root_dir=folder)
    runner.fit(module, Loader(), VALIDATION)
    runner.fit_loop.max_epochs = 3
    return module, watch, runner


@pytest.mark.parametrize("fuses", [False, True])
def test_a_fit_within_is_refused_and_nothing_is_lost(fuses: bool, tmp_path: Path) -> None:
    def techniques() -> list[Technique]:
        fusion = [WeightFusion(collect=LastEpochs(2), keep="always")] if fuses else []
        return [EMAWeights(decay=0.9), *fusion]

    used, expected = techniques(), techniques()
    module, watch, runner = fitted(tmp_path / "a", *used)
    held = weights(module)
    with used[0].live_weights():
        for _ in range(2):
            with pytest.raises(RuntimeError, match=REFUSED):
                runner.fit(module, Loader(), VALIDATION)
        assert_equal(weights(module), watch.steps[-1])
    assert_equal(weights(module), held)
    with pytest.raises(StopError), used[0].live_weights():
        raise StopError
    runner.fit(module, Loader(), VALIDATION)

    other, seen, alike = fitted(tmp_path / "b", *expected)
    alike.fit(other, Loader(), VALIDATION)
    assert_equal(watch.steps, seen.steps)
    assert_equal(weights(module), weights(other))
    assert_equal(used[0].saved(), expected[0].saved())


def test_the_refusal_comes_before_another_context_is_forgotten(tmp_path: Path) -> None:
    body, head = EMAWeights(label="b", params="body"), EMAWeights(label="h", params="head")
    module, watch, runner = fitted(tmp_path, body, head)
    held = weights(module)
    for first, second in ((body, head), (head, body)):
        with first.live_weights(), second.live_weights():
            assert_equal(weights(module)["head.weight"], watch.steps[-1]["head.weight"])
            with pytest.raises(RuntimeError, match=REFUSED):
                runner.fit(module, Loader(), VALIDATION)
        with first.live_weights(), pytest.raises(RuntimeError, match=REFUSED):
            runner.fit(module, Loader(), VALIDATION)
    assert_equal(weights(module), held)


@every_kind
def test_evaluations_within_see_the_live_weights(kind: Any) -> None:
    ema = kind()
    module, watch, runner = watched(ema)
    watch.seen.clear()
    held = weights(module)
    with ema.live_weights():
        runner.validate(module, VALIDATION, verbose=False)
        runner.test(module, VALIDATION, verbose=False)
        runner.predict(module, VALIDATION)
    assert len(watch.seen) == 3
    for seen in watch.seen:
        assert_equal(seen, watch.steps[-1])
    assert_equal(weights(module), held)


def test_a_fit_within_is_harmless_where_the_module_holds_no_average(tmp_path: Path) -> None:
    ema, module, watch = EMAWeights(decay=0.9), Toy(), Watch()
    runner = trainer(ema, watch, StopAfter(7, tmp_path / "a.ckpt"))
    with pytest.raises(StopError):
        runner.fit(module, Loader(), VALIDATION)
    with ema.live_weights():
        runner.fit(module, Loader(), VALIDATION)
        average = weights(module)
    assert_equal(weights(module), average)
    assert_equal(live_of(ema, module), watch.steps[-1])
