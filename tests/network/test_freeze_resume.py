"""Freeze across interruptions: equal to the bit, wherever the run was broken off."""

from __future__ import annotations

import pytest

from lightning_tricks.network.freeze import Freeze
from tests.network.deep import Deep, Watch, fit
from tests.network.test_unfreeze_resume import state, stopped
from tests.toys import Loader, assert_equal, weights


@pytest.mark.parametrize("at", [0, 4, "1 epoch"])
def test_resumed_at_every_batch(at, tmp_path):
    whole_watch = Watch()
    whole = state(
        fit(Deep(), Freeze(params="body", at=at), whole_watch, max_epochs=2), tmp_path / "whole.ckpt"
    )
    for stop in range(1, 10):
        saved = stopped(tmp_path, stop, Deep, Freeze(params="body", at=at), max_epochs=2)
        watch = Watch()
        runner = fit(Deep(), Freeze(params="body", at=at), watch, ckpt_path=saved, max_epochs=2)
        assert watch.modes == whole_watch.modes[stop:]
        assert_equal(whole, state(runner, tmp_path / "parts.ckpt"))


def test_a_changed_moment_never_thaws_what_was_frozen(tmp_path):
    saved = stopped(tmp_path, 3, Deep, Freeze(params="body", at=1))
    watch = Watch()
    with pytest.warns(UserWarning, match="changed settings: at 1 -> 9"):
        fit(Deep(), Freeze(params="body", at=9), watch, ckpt_path=saved)
    assert ["b" in watch.moved(batch) for batch in range(12)] == [False] * 12


def test_it_may_join_a_run_that_was_begun_without_it(tmp_path):
    saved = stopped(tmp_path, 3, Deep)
    watch = Watch()
    module = Deep()
    (optimizer,) = fit(module, Freeze(params="body"), watch, ckpt_path=saved).optimizers
    assert ["b" in watch.moved(batch) for batch in range(12)] == [False] * 12
    assert set(optimizer.state) == {*module.head.parameters(), *module.mid.parameters()}


def test_a_second_fit_goes_on_and_another_trainer_begins_anew():
    module, watch, freeze = Deep(), Watch(), Freeze(params="body", at="1 epoch")
    runner = fit(module, freeze, watch, max_epochs=2)
    before = weights(module)
    runner.fit_loop.max_epochs = 3
    runner.fit(module, Loader(), Loader(2))
    assert ["b" in watch.moved(batch) for batch in range(15)] == [True] * 5 + [False] * 10
    assert_equal(before["body.0.weight"], weights(module)["body.0.weight"])
    fresh = Watch()
    fit(module, freeze, fresh, max_epochs=2)
    assert ["b" in fresh.moved(batch) for batch in range(10)] == [True] * 5 + [False] * 5
