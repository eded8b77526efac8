"""Several averages in one run: one that is evaluated, and others that are kept apart under labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_tricks import ConflictError, EMAWeights, Lookahead, average_state, live_state
from tests.averaging.test_ema_choice import Zoo
from tests.averaging.watching import Watch, live_of, slow_twin, watched
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights


def slow(**settings: Any) -> EMAWeights:
    return EMAWeights(decay=0.99, label="slow", evaluate=False, **settings)


def slower(**settings: Any) -> EMAWeights:
    return EMAWeights(decay=0.999, label="slower", evaluate=False, decay_warmup=False, **settings)


def test_each_is_its_own_average_and_one_is_evaluated() -> None:
    main, second, third = EMAWeights(decay=0.9), slow(), slower(every=2)
    module, watch, _ = watched(second, None, main, third)
    alone, watch_alone, _ = watched(EMAWeights(decay=0.9))
    assert_equal(weights(module), weights(alone))
    assert_equal(watch.seen, watch_alone.seen)
    assert_equal(watch.steps, watch_alone.steps)
    for ema, decay, warmup, every in ((second, 0.99, True, 1), (third, 0.999, False, 2)):
        expected = slow_twin(watch.steps, lambda _, d=decay: d, warmup=warmup, every=every, start=0)
        for name, value in ema.average().items():
            torch.testing.assert_close(value, expected[name])


def test_one_that_is_kept_apart_changes_nothing() -> None:
    plain, watch_plain = Toy(), Watch()
    trainer(watch_plain).fit(plain, Loader(), Loader(2, seed=9))
    ema = slow(buffers="average")
    module, watch, runner = watched(ema)
    assert_equal(weights(module), weights(plain))
    assert_equal(watch.seen, watch_plain.seen)
    with ema.live_weights():
        assert_equal(weights(module), weights(plain))
    assert "on_save_checkpoint" not in vars(module)
    assert not torch.equal(ema.average()["body.1.running_mean"], plain.body[1].running_mean)
    runner.test(module, Loader(), verbose=False)


def test_a_checkpoint_holds_all_of_them_and_any_is_read(tmp_path: Path) -> None:
    main, second, third = EMAWeights(decay=0.9), slow(), slower(start=1000)
    late, told = "start comes at step 1000", r"EMAWeights\[slower\] averaged nothing, since start was not"
    with pytest.warns(UserWarning, match=late), pytest.warns(UserWarning, match=told):
        module, _, runner = watched(main, Zoo(), second, third)
    runner.save_checkpoint(path := tmp_path / "a.ckpt")
    assert_equal(weights_of(live_state(path)), live_of(main, module))
    assert_equal(weights_of(average_state(path)), weights(module))
    found = average_state(path, label="slow")
    assert found.keys() == module.state_dict().keys()
    for name, value in found.items():
        assert value.dtype == module.state_dict()[name].dtype
        expected = second.average().get(name, live_of(main, module)[name])
        assert torch.equal(value, expected), name
    assert torch.equal(found["tied.weight"], found["head.weight"])
    with pytest.raises(ValueError, match="path must be a checkpoint after the average of 'slower' began"):
        average_state(path, label="slower")
    with pytest.raises(ValueError, match="label must be .*, got 'fast'; it has 'slow', 'slower'"):
        average_state(path, label="fast")


def weights_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != "passing"}


def test_the_label_of_the_one_that_is_evaluated_reads_it_too(tmp_path: Path) -> None:
    module, _, runner = watched(EMAWeights(decay=0.9, label="main"))
    runner.save_checkpoint(path := tmp_path / "a.ckpt")
    assert_equal(dict(average_state(path, label="main")), weights(module))


def test_weights_only_checkpoints_hold_the_evaluated_one_alone(tmp_path: Path) -> None:
    module, _, runner = watched(EMAWeights(decay=0.9), None, slow())
    runner.save_checkpoint(path := tmp_path / "a.ckpt", weights_only=True)
    assert_equal(dict(average_state(path)), weights(module))
    with pytest.raises(ValueError, match="label must be .*, got 'slow'; it has none"):
        average_state(path, label="slow")


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_all_of_them_go_on_to_the_bit(tmp_path: Path, precision: Any) -> None:
    def run(*callbacks: Callback, **settings: Any) -> tuple[Any, ...]:
        several = EMAWeights(decay=0.9), slow(every=2), slower(buffers="average", start=6)
        module = Toy()
        trainer(*several, *callbacks, precision=precision).fit(module, Loader(), **settings)
        return weights(module), [ema.average() for ema in several], [ema.saved() for ema in several]

    whole, saved = run(), tmp_path / "stopped.ckpt"
    with pytest.raises(StopError):
        run(StopAfter(8, saved))
    assert_equal(run(ckpt_path=saved), whole)


def test_one_that_has_not_begun_begins_at_its_start_also_if_resumed(tmp_path: Path) -> None:
    def run(*callbacks: Callback, **settings: Any) -> dict[str, Tensor]:
        main, late = EMAWeights(decay=0.9), slow(start=10)
        trainer(main, late, *callbacks).fit(Toy(), Loader(), **settings)
        return {name: value.clone() for name, value in late.average().items()}

    whole, saved = run(), tmp_path / "stopped.ckpt"
    with pytest.raises(StopError):
        run(StopAfter(4, saved))
    assert_equal(run(ckpt_path=saved), whole)


def test_one_that_is_added_on_a_resume_begins_with_the_live_weights_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StopError):
        trainer(EMAWeights(decay=0.5), StopAfter(4, saved := tmp_path / "a.ckpt")).fit(Toy(), Loader())
    added, watch = slow(decay_warmup=False), Watch()
    trainer(EMAWeights(decay=0.5), added, watch).fit(Toy(), Loader(), ckpt_path=saved)
    assert "EMAWeights[slow]: the checkpoint holds no average" in capsys.readouterr().out
    assert_equal({**watch.steps[0], **live_state(saved)}, watch.steps[0])
    expected = slow_twin(watch.steps, lambda _: 0.99, warmup=False, every=1, start=0)
    torch.testing.assert_close(added.average()["head.weight"], expected["head.weight"])


@pytest.mark.filterwarnings("ignore:EMAWeights.* was resumed with changed settings")
@pytest.mark.parametrize("first", [0, 1])
def test_another_of_them_may_be_evaluated_from_a_resume_on(tmp_path: Path, first: int) -> None:
    def run(which: int, *callbacks: Callback, **settings: Any) -> list[dict[str, Tensor]]:
        pair = [EMAWeights(decay=d, label=str(d), evaluate=i == which) for i, d in enumerate((0.9, 0.99))]
        module = Toy()
        trainer(*pair, *callbacks).fit(module, Loader(), **settings)
        return [{name: value.clone() for name, value in ema.average().items()} for ema in pair]

    with pytest.raises(StopError):
        run(first, StopAfter(7, saved := tmp_path / "a.ckpt"))
    assert_equal(run(1 - first, ckpt_path=saved), run(first))


def test_the_next_fit_begins_it_anew() -> None:
    main, second = EMAWeights(decay=0.9), slow(decay_warmup=False)
    module, _, runner = watched(main, None, second)
    watch = Watch()
    runner.callbacks.append(watch)
    runner.fit_loop.max_epochs = 4
    runner.fit(module, Loader())
    expected = slow_twin(watch.steps, lambda _: 0.99, warmup=False, every=1, start=0)
    assert second.outcome()["updates"] == 5
    assert main.outcome()["updates"] == 20
    torch.testing.assert_close(second.average()["head.weight"], expected["head.weight"])


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_an_evaluation_of_a_checkpoint_leaves_it_out(tmp_path: Path) -> None:
    _, _, runner = watched(EMAWeights(decay=0.9, save="live"), None, slow())
    runner.save_checkpoint(path := tmp_path / "a.ckpt")
    watch = Watch()
    trainer(slow(), watch).validate(Toy(), Loader(2), ckpt_path=path, verbose=False)
    assert_equal({**watch.seen[0], **live_state(path)}, watch.seen[0])


def test_two_that_are_evaluated_conflict_and_any_number_apart_do_not() -> None:
    with pytest.raises(ConflictError, match="'eval_weights' must have one owner"):
        watched(EMAWeights(), None, EMAWeights(label="slow"))
    watched(slow(), None, slower(), Lookahead(), max_epochs=1)
    with pytest.raises(ConflictError, match="'weights' must have one owner"):
        watched(slow(switch_every=2), None, slower(switch_every=3))


def test_what_is_kept_apart_stands_under_no_state_dict() -> None:
    with pytest.raises(ValueError, match="save must be left out where evaluate=False"):
        slow(save="live")
