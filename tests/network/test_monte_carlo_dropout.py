"""Predictions of several passes with dropout on: their mean and spread, and that nothing else changes."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_tricks as lt
from lightning_tricks.network.monte_carlo_dropout import Spread, dropping, spread_of
from tests.toys import Compiled, Loader, StopError, Toy, assert_equal, trainer, weights

DATA = Loader(2, seed=9, fixed=True)
Pair = namedtuple("Pair", "logits value")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("passes", [2, 3, 20])
def test_mean_and_spread_are_torchs(dtype, passes):
    values = (torch.randn(passes, 3, 2, generator=torch.Generator().manual_seed(0)) + 100).to(dtype)
    found = spread_of(iter(values).__next__, passes=passes)
    wide = values.to(torch.promote_types(dtype, torch.float32))
    assert found.mean.dtype == wide.dtype
    torch.testing.assert_close(found.mean, wide.mean(0))
    torch.testing.assert_close(found.std, wide.double().std(0).to(wide), rtol=1e-4, atol=1e-6)


def test_nested_predictions_keep_their_form():
    passes = iter([1.0, 3.0])

    def predict() -> Any:
        value = torch.tensor(next(passes))
        return {"a": [value, value * 2], "b": Pair(value, (value,))}

    mean, std = spread_of(predict, passes=2)
    assert mean == {"a": [2.0, 4.0], "b": Pair(2.0, (2.0,))}
    assert std["b"].value[0].item() == pytest.approx(2**0.5)


def test_the_prediction_itself_is_not_changed():
    value = torch.ones(2)
    spread_of(lambda: value, passes=3)
    assert value.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("predicted", "words"),
    [
        (torch.tensor([1]), "got a tensor of torch.int64"),
        ([torch.ones(1), "cat"], "got str"),
        (None, "got NoneType"),
        (torch.ones(1, dtype=torch.complex64), "got a tensor of torch.complex64"),
    ],
)
def test_what_has_no_mean_is_refused(predicted, words):
    with pytest.raises(TypeError, match=f"predict_step must return floating tensors .*{words}"):
        spread_of(lambda: predicted, passes=2)


@pytest.mark.parametrize("second", [torch.ones(3), [torch.ones(2)]])
def test_another_form_in_a_later_pass_is_refused(second):
    values = iter([torch.ones(2), second])
    with pytest.raises(ValueError, match="one form in each pass"):
        spread_of(lambda: next(values), passes=2)


class Whole(Toy):
    """Predicts the mean of the inputs that dropout leaves, which has a known law."""

    def __init__(self, p: float = 0.25) -> None:
        super().__init__()
        self.drop, self.seen = nn.Dropout(p), []

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append([layer.training for layer in (self.body[1], self.drop, self)])
        return self.drop(torch.ones(4, 1000)).mean(1)


def test_mean_and_spread_of_dropout_are_those_of_its_law():
    module = Whole()
    predicted = trainer(lt.MonteCarloDropout(passes=100, params="drop", seed=0)).predict(module, DATA)
    assert len(predicted) == 2 and isinstance(predicted[0], Spread)
    mean, std = predicted[0]
    # Of 1000 entries that are 4/3 with probability 3/4, the mean is 1 with variance (1/3) / 1000.
    torch.testing.assert_close(mean, torch.ones(4), rtol=0, atol=0.01)
    torch.testing.assert_close(std, torch.full((4,), (1 / 3000) ** 0.5), rtol=0.3, atol=0)
    assert set(map(tuple, module.seen)) == {(False, True, False)}  # BatchNorm stays as it is
    assert len(module.seen) == 200


def test_a_seed_makes_predictions_equal_and_leaves_the_random_state():
    first, second = (trainer(lt.MonteCarloDropout(seed=3)).predict(Toy(), DATA) for _ in range(2))
    assert_equal([list(each) for each in first], [list(each) for each in second])
    module = Toy()
    before = torch.get_rng_state()
    trainer(lt.MonteCarloDropout(seed=3)).predict(module, DATA)
    assert torch.equal(torch.get_rng_state(), before)
    trainer(lt.MonteCarloDropout()).predict(module, DATA)
    assert not torch.equal(torch.get_rng_state(), before)


def test_all_else_is_as_without_it():
    module, plain = Toy(), Toy()
    technique = lt.MonteCarloDropout(passes=3)
    runner, bare = trainer(technique, lt.EMAWeights(decay=0.5)), trainer(lt.EMAWeights(decay=0.5))
    for each, net in ((runner, module), (bare, plain)):
        each.fit(net, Loader(), DATA)
    assert_equal(weights(module), weights(plain))
    assert runner.validate(module, DATA, verbose=False) == bare.validate(plain, DATA, verbose=False)
    assert runner.test(module, DATA, verbose=False) == bare.test(plain, DATA, verbose=False)
    spread, _ = runner.predict(module, DATA)  # of the averaged weights
    assert not torch.equal(spread.std, torch.zeros_like(spread.std))
    assert "predict_step" not in vars(module)
    assert torch.equal(trainer().predict(module, DATA)[0], bare.predict(plain, DATA)[0])
    assert_equal(weights(module), weights(plain))


def test_everything_is_undone_after_an_error():
    class Breaks(Toy):
        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise StopError

    module = Breaks()
    own = vars(module)["predict_step"] = module.predict_step
    with pytest.raises(StopError):
        trainer(lt.MonteCarloDropout()).predict(module, DATA)
    assert vars(module)["predict_step"] is own
    assert not module.body[3].training
    assert torch.backends.mha.get_fastpath_enabled()


def test_torchs_fused_encoder_drops_out_too():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.5).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
        with dropping([net.dropout1]):
            assert not torch.equal(net(x), net(x))
        assert torch.equal(net(x), net(x))
    assert not any(part.training for part in net.modules())


def test_a_compiled_part_drops_out():
    module = Compiled()
    first, _ = trainer(lt.MonteCarloDropout(seed=0)).predict(module, DATA)
    assert (first.std > 0).all()


@pytest.mark.parametrize("run", ["fit", "predict"])
def test_dropout_that_drops_nothing_is_refused(run):
    module = Toy()
    module.body[3].p = 0.0
    runner = trainer(lt.MonteCarloDropout())
    with pytest.raises(ValueError, match="params must match a dropout layer that drops, got '\\*': all have"):
        getattr(runner, run)(module, Loader())


def test_a_step_that_fetches_its_data_is_refused():
    class Fetches(Toy):
        def predict_step(self, dataloader_iter: Any) -> Tensor:
            raise AssertionError

    with pytest.raises(ValueError, match="got a dataloader_iter"), pytest.warns(match="dataloader_iter"):
        trainer(lt.MonteCarloDropout()).predict(Fetches(), DATA)


@pytest.mark.parametrize("run", ["fit", "predict"])
def test_two_may_not_predict(run):
    module, two = Toy(), (lt.MonteCarloDropout(passes=2), lt.MonteCarloDropout(passes=3, label="b"))
    words = r"'predict_step' must have one owner, got MonteCarloDropout and MonteCarloDropout\[b\]: remove"
    with pytest.raises(lt.ConflictError, match=words):
        getattr(trainer(*two), run)(module, Loader())
    assert "predict_step" not in vars(module)
