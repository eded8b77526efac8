"""The mixin: in every regime, when resumed, in evaluation, and what each strategy promises."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn.functional import cross_entropy

import lightning_tricks as lt
from lightning_tricks import BalancedLosses
from lightning_tricks.objectives import balancing
from lightning_tricks.objectives.grad_norm import norms_of, task_gradients
from lightning_tricks.objectives.loss_balance import LossBalance
from tests.contract.mixing import two_tasks
from tests.contract.regimes import REGIMES
from tests.host_reads import HostReads
from tests.toys import Loader, Logged, StopAfter, StopError, Toy, assert_equal, trainer, weights

KINDS = {"fit": "classification", "size": "regression"}
ALIKE = {"fit": "regression", "size": "regression"}
STRATEGIES = {
    "fixed": lt.FixedWeights({"fit": "linear(to=0.5)", "size": 0.1}),
    "magnitude": lt.MagnitudeBalance(decay=0.5),
    "uncertainty": lt.UncertaintyBalance(KINDS),
    "uncertainty from 0": lt.UncertaintyBalance(KINDS, start=0.0),
    "grad norm": lt.GradNorm(("body", "body.*")),
    "dynamic": lt.DynamicWeightAverage(),
    "random": lt.RandomWeights(seed=3),
}


def built(strategy: LossBalance, kind: type[Toy] = Toy, optimizer: str = "AdamW") -> Any:
    """Return a toy with two losses."""
    module = type("Balanced", (BalancedLosses, kind), two_tasks(strategy))()
    module.optimizer = optimizer
    module.options |= {"weight_decay": 0.0}
    return module


@pytest.fixture(autouse=True)
def _graphs_of_compiled_code_stay() -> Iterator[None]:
    with functorch_config.patch(donated_buffer=False):
        yield


@pytest.mark.sampled(3)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("regime", ["fp32", "16-mixed, accumulation", "bf16-true", "manual", "compiled"])
def test_a_resumed_run_equals_an_uninterrupted_one(strategy: str, regime: str, tmp_path: Path) -> None:
    def run(*callbacks: Callback, **options: Any) -> Toy:
        module = built(STRATEGIES[strategy], type(REGIMES[regime].module()))
        runner = trainer(*callbacks, **REGIMES[regime].settings())
        runner.fit(module, Loader(), Loader(2, seed=9, fixed=True), **options)
        return module

    whole = run()
    with pytest.raises(StopError):
        run(StopAfter(9, tmp_path / "a.ckpt"))
    parts = run(ckpt_path=tmp_path / "a.ckpt")
    assert_equal(weights(whole), weights(parts))
    assert_equal(whole._balancing.saved(), parts._balancing.saved())
    assert whole._balancing.steps == (8 if "accumulation" in regime else 14)
    if whole.loss_balance.learned:
        assert whole.loss_log_variances.any()


def test_all_batches_of_a_step_have_its_weights_and_count_for_it_together() -> None:
    seen: list[tuple[int, list[float], list[float]]] = []

    class Noted(Toy):
        def balance(self, losses: dict[str, Any]) -> Any:
            total = super().balance(losses)
            values = [losses[name].item() for name in sorted(losses)]
            seen.append((self.global_step, [each.item() for each in self.loss_weights.values()], values))
            return total

    module = type("Balanced", (Noted, BalancedLosses, Toy), two_tasks(lt.MagnitudeBalance(decay=0.5)))()
    trainer(accumulate_grad_batches=2).fit(module, Loader())
    steps: dict[int, list[Any]] = {}
    for step, *row in seen:
        steps.setdefault(step, []).append(row)
    assert [len(rows) for rows in steps.values()] == [2, 2, 1] * 3
    mean = None
    for count, rows in steps.items():
        assert all(row[0] == rows[0][0] for row in rows)
        if mean is None:
            expected = [1 / value for value in rows[0][1]]
        else:
            expected = [(1 - 0.5**count) / each for each in mean]
        assert rows[0][0] == pytest.approx(expected, rel=1e-5)
        own = torch.tensor([row[1] for row in rows]).mean(0)
        mean = 0.5 * own if mean is None else 0.5 * torch.tensor(mean) + 0.5 * own
        mean = mean.tolist()


def test_a_second_pass_over_a_batch_changes_nothing() -> None:
    module = built(lt.DynamicWeightAverage())
    twice = built(lt.DynamicWeightAverage())
    twice.__class__ = type("Twice", (type(twice),), {"training_step": two_passes})
    for each in (module, twice):
        trainer(max_epochs=4).fit(each, Loader())
    assert_equal(module._balancing.saved(), twice._balancing.saved())
    assert_equal(weights(module), weights(twice))


def two_passes(self: Any, batch: Any, batch_idx: int) -> Any:
    loss = super(type(self), self).training_step(batch, batch_idx)
    self.balance({"fit": torch.tensor(3.0), "size": torch.tensor(5.0)})
    return loss


def test_evaluation_takes_the_last_weights_and_moves_nothing() -> None:
    module = built(lt.MagnitudeBalance(decay=0.5))
    losses = {"size": torch.tensor(2.0), "fit": torch.tensor(1.0)}
    with torch.no_grad():
        assert module.balance(losses) == 3.0
    assert module.loss_weights == {}
    runner = trainer()
    runner.fit(module, Loader(), Loader(2, seed=9, fixed=True))
    before = copy.deepcopy(module._balancing.saved())
    found = runner.callback_metrics["val_loss"]
    own = module.loss_weights
    assert module.eval().balance(losses).item() == (own["fit"] + 2 * own["size"]).item()
    runner.validate(module, Loader(2, seed=9, fixed=True), verbose=False)
    assert runner.callback_metrics["val_loss"] == found
    assert_equal(before, module._balancing.saved())


def test_a_new_run_begins_anew_and_a_second_fit_goes_on() -> None:
    module = built(lt.MagnitudeBalance())
    runner = trainer(max_epochs=1)
    runner.fit(module, Loader())
    runner.fit_loop.max_epochs = 2
    runner.fit(module, Loader())
    assert module._balancing.steps == 9
    trainer(max_epochs=1).fit(module, Loader())
    assert module._balancing.steps == 4


def test_each_loss_and_weight_is_logged_by_its_name() -> None:
    module, logged = built(lt.FixedWeights({"fit": "linear(to=0.5)", "size": 2.0})), Logged("balanced_losses")
    trainer(logged).fit(module, Loader())
    assert logged.column("weight/size") == [2.0] * 15
    assert logged.column("weight/fit") == pytest.approx([1 - step / 30 for step in range(15)])
    assert all(value > 0 for name in ("fit", "size") for value in logged.column(f"loss/{name}"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_that_does_not_log_reads_nothing(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancing, "read_freely", lambda tensor: False)
    listed: list[Tensor] = []
    tolist = Tensor.tolist  # which torch does on a CPU without a word to those who count
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: listed.append(tensor) or tolist(tensor))

    def reads(batches: int) -> int:
        listed.clear()
        with HostReads() as seen:
            module = built(STRATEGIES[strategy], optimizer="SGD")
            trainer(max_epochs=1, log_every_n_steps=1000).fit(module, Loader(batches))
        return seen.count + len(listed)

    assert reads(5) == reads(15) > 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_copy_trains_on_as_the_original_does(strategy: str) -> None:
    module = built(STRATEGIES[strategy])
    runner = trainer(max_epochs=1)
    runner.fit(module, Loader())
    results = []
    for each, own in (copy.deepcopy((module, runner)), (module, runner)):
        own.fit_loop.max_epochs = 2
        own.fit(each, Loader())
        results.append((weights(each), each._balancing.saved()))
    assert_equal(*results)
    assert results[0][1]["steps"] == 9


class Alike(BalancedLosses, LightningModule):
    """Two tasks that are alike but for the scale of their losses, which differs by ``scale``."""

    def __init__(self, strategy: LossBalance, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loss_balance, self.scale = strategy, scale
        self.body, self.heads = nn.Linear(4, 8), nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        hidden, (inputs, labels) = self.body(batch[0]).tanh(), batch
        targets = (inputs[:, :1] + labels[:, None], inputs[:, 1:2] - (labels[:, None] == 1).float())
        first, second = (
            (head(hidden) - target).square().mean() for head, target in zip(self.heads, targets, strict=True)
        )
        return {"fit": first, "size": second * self.scale}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.balance(self.losses(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def shares(self) -> Tensor:
        """Return each task's share of the sum of the norms of the gradients of the body."""
        body, norms = [*self.body.parameters()], torch.zeros(2)
        for batch in Loader(50, seed=3):
            norms += norms_of(task_gradients([*self.losses(batch).values()], body), 2)
        norms = norms * torch.stack([*self.loss_weights.values()])
        return norms / norms.sum()


def share_after_200_steps(strategy: LossBalance, scale: float) -> tuple[float, Alike]:
    """Return the share of the task whose loss is greater."""
    module = Alike(strategy, scale)
    trainer(max_epochs=1, log_every_n_steps=1000).fit(module, Loader(200))
    return module.shares()[1].item(), module


@pytest.mark.parametrize("strategy", [lt.MagnitudeBalance(), lt.UncertaintyBalance(ALIKE)])
def test_units_do_not_matter(strategy: LossBalance) -> None:
    (one, _), (many, _) = (share_after_200_steps(strategy, scale) for scale in (1.0, 1e4))
    assert one == pytest.approx(many, abs=1e-2)
    assert 0.2 < many < 0.8


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_norms_are_shared_as_rates_of_training_ask(alpha: float) -> None:
    share, module = share_after_200_steps(lt.GradNorm("body", alpha=alpha), 1e4)
    state = module._balancing.state
    losses = sum(torch.stack([*module.losses(batch).values()]).detach() for batch in Loader(50, seed=3)) / 50
    rates = (losses / state["first"]) ** alpha
    assert share == pytest.approx((rates[1] / rates.sum()).item(), abs=0.1)


OTHERS = [
    lt.FixedWeights(),
    lt.DynamicWeightAverage(),
    lt.RandomWeights(),
    lt.UncertaintyBalance(ALIKE, start=0.0),
]


@pytest.mark.parametrize("strategy", OTHERS)
def test_others_promise_nothing_about_scales(strategy: LossBalance) -> None:
    assert share_after_200_steps(strategy, 1e4)[0] > 0.98


def test_weights_chosen_by_hand_undo_a_scale() -> None:
    share, _ = share_after_200_steps(lt.FixedWeights({"fit": 1.0, "size": 1e-4}), 1e4)
    assert share == pytest.approx(share_after_200_steps(lt.FixedWeights(), 1.0)[0], abs=1e-3)


def for_surgery(self: Any, batch: Any, batch_idx: int) -> dict[str, Any]:
    logits = self.head(self.body(batch[0]))
    losses = {"fit": cross_entropy(logits, batch[1]), "size": logits.square().mean()}
    total = self.balance(losses)
    return {"loss": total, "losses": {name: self.loss_weights[name] * loss for name, loss in losses.items()}}


def test_surgery_takes_the_weighted_losses() -> None:
    runs = []
    for method in (lt.Sum(), lt.PCGrad()):
        module = built(lt.MagnitudeBalance())
        module.__class__ = type("Operated", (type(module),), {"training_step": for_surgery})
        torch.manual_seed(0)
        trainer(lt.GradientSurgery(method=method)).fit(module, Loader())
        runs.append(module)
    assert runs[0]._balancing.steps == runs[1]._balancing.steps == 14
    assert not torch.equal(runs[0].head.weight, runs[1].head.weight)


def test_the_card_is_complete() -> None:
    headings = ("When", "Changes", "Logs", "Saves", "Cost", "Use")
    assert all(f"* **{heading}**" in str(BalancedLosses.__doc__) for heading in headings)
