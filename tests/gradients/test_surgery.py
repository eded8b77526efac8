"""Gradient surgery in a run: the algorithm step by step, over accumulation, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_tricks import CAGrad, GradientClip, GradientSurgery, PCGrad, Sum, TorchJD
from lightning_tricks.core.conflicts import ConflictError
from lightning_tricks.core.seeds import seed_of
from lightning_tricks.gradients.surgery import combine, gramian
from lightning_tricks.gradients.surgery_methods import SurgeryMethod
from tests.contract.from_yaml import from_yaml
from tests.contract.test_together import reads_per_step
from tests.gradients.test_surgery_methods import projected
from tests.toys import Loader, Logged, Toy, assert_equal, scaler_plugin, trainer, weights


def test_products_and_sums_are_those_of_one_long_vector_per_loss() -> None:
    shapes = [(3, 2), (), (0, 4), (5,)]
    tasks: list[list[Tensor | None]] = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    tasks[0][0] = tasks[1][0] = tasks[2][0] = tasks[1][3] = None
    rows = torch.stack(
        [
            torch.cat(
                [
                    g.flatten() if g is not None else torch.zeros(s).flatten()
                    for s, g in zip(shapes, t, strict=True)
                ]
            )
            for t in tasks
        ]
    )
    torch.testing.assert_close(gramian(tasks), (rows.double() @ rows.double().T))
    found = combine(tasks, torch.tensor([1.0, 2.0, -0.5]))
    assert found[0] is None
    expected = torch.tensor([1.0, 2.0, -0.5]) @ rows
    torch.testing.assert_close(torch.cat([g.flatten() for g in found if g is not None]), expected[6:])


def test_products_are_wide_and_real() -> None:
    half = torch.full((300_000,), 1.0, dtype=torch.bfloat16)
    assert gramian([[half], [-half]]).tolist() == [[3e5, -3e5], [-3e5, 3e5]]
    z = torch.tensor([1 + 2j, 3j])
    assert gramian([[z], [1j * z]]).tolist() == [
        [14.0, 0.0],
        [0.0, 14.0],
    ]  # at right angles, as plane vectors
    mixed = gramian([[half[:2], torch.ones(1, dtype=torch.float64)]])
    assert mixed.dtype == torch.float64 and mixed.item() == 3.0


class Three(LightningModule):
    """A trunk and three heads in double precision, each with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double()
        self.heads = nn.ModuleList(nn.Linear(6, 3).double() for _ in range(3))

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        features = self.trunk(batch[0].double())
        found = {str(i): cross_entropy(h(features), (batch[1] + i) % 3) for i, h in enumerate(self.heads)}
        return {**found, "1": 5 * found["1"]}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        losses = self.losses(batch)
        return {"loss": sum(losses.values()), "losses": losses}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def twin(epochs: int, method: SurgeryMethod, accumulate: int) -> tuple[Three, list[float], list[Tensor]]:
    """Return a module that was trained by hand, the share of conflicts at each step, and the weights."""
    module, loader, step = Three(), Loader(), 0
    optimizer = module.configure_optimizers()
    trunk, heads = list(module.trunk.parameters()), list(module.heads.parameters())
    conflicts, used = [], []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        batches = list(loader)
        for start in range(0, len(batches), accumulate):
            parts = [module.losses(batch) for batch in batches[start : start + accumulate]]
            totals = [sum(part[name] for part in parts) / accumulate for name in parts[0]]
            found = [torch.autograd.grad(total, trunk, retain_graph=True) for total in totals]
            g = torch.stack([torch.cat([x.flatten() for x in own]) for own in found])
            seed = seed_of(0, None, step)
            if isinstance(method, PCGrad):
                joined = projected(g, seed)
            else:
                used.append(method.weights(g @ g.T, torch.Generator().manual_seed(seed)))
                joined = used[-1] @ g
            optimizer.zero_grad()
            sum(totals).backward()
            for p, part in zip(trunk, joined.split([p.numel() for p in trunk]), strict=True):
                p.grad = part.view_as(p)
            assert all(p.grad is not None for p in heads)
            optimizer.step()
            step += 1
            products = g @ g.T
            conflicts.append(sum(float(products[i, j] < 0) for i, j in ((0, 1), (0, 2), (1, 2))) / 3)
    return module, conflicts, used


@pytest.mark.parametrize("method", [PCGrad(), CAGrad(0.5), TorchJD("MGDA")], ids=str)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_are_those_of_a_run_by_hand(method: SurgeryMethod, accumulate: int) -> None:
    module, logged = Three(), Logged("gradient_surgery")
    surgery = GradientSurgery(method=method, params="trunk")
    trainer(surgery, logged, max_epochs=8, accumulate_grad_batches=accumulate).fit(module, Loader())
    expected, conflicts, used = twin(8, method, accumulate)
    assert len(conflicts) == {1: 40, 2: 24}[accumulate]
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=1e-10)
    if accumulate == 1:
        assert logged.column("conflicts") == pytest.approx(conflicts)
        assert 0.0 < sum(conflicts) < len(conflicts)
        for index in range(3 if used else 0):
            wanted = [float(each[index]) for each in used]
            assert logged.column(f"weight/{index}") == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_one_loss_is_left_as_it_is() -> None:
    class One(Three):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)["loss"]
            return {"loss": loss, "losses": {"all": loss}}

    results = []
    for techniques in ([], [GradientSurgery()]):
        module = One()
        trainer(*techniques, accumulate_grad_batches=2).fit(module, Loader())
        results.append(weights(module))
    assert_equal(*results)


def test_a_loss_that_a_batch_knows_nothing_of() -> None:
    class Rare(Three):
        def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            return {**super().losses(batch), "1": torch.zeros(())}

    module, logged = Rare(), Logged("gradient_surgery")
    before = weights(module)
    trainer(GradientSurgery(params="trunk"), logged).fit(module, Loader())
    after = weights(module)
    assert torch.equal(before["heads.1.weight"], after["heads.1.weight"])
    assert not torch.equal(before["heads.0.weight"], after["heads.0.weight"])
    assert logged.column("weight/1") == [1.0] * 15


def test_outputs_hold_losses_without_their_graph() -> None:
    class Look(Callback):
        seen: Any = None

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
            self.seen = outputs

    look = Look()
    trainer(GradientSurgery(), look, accumulate_grad_batches=5).fit(module := Three(), Loader())
    losses = look.seen["losses"]
    assert not any(loss.requires_grad for loss in losses.values())
    assert float(sum(losses.values())) == pytest.approx(5 * float(look.seen["loss"]))
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_scaler_sees_gradients_that_overflow() -> None:
    module = Toy()
    start = weights(module)
    runner = trainer(GradientSurgery(), plugins=[scaler_plugin(init_scale=2.0**100)], max_epochs=1)
    runner.fit(module, Loader())
    assert_equal(
        {n: p.detach() for n, p in module.named_parameters()},
        {n: start[n] for n, _ in module.named_parameters()},
    )
    assert runner.precision_plugin.scaler.get_scale() == 2.0**95


@pytest.mark.parametrize("method", [CAGrad(0.5), TorchJD("MGDA"), Sum()], ids=str)
def test_yaml_builds_policies(method: SurgeryMethod) -> None:
    surgery = GradientSurgery(method=method, params="trunk")
    assert repr(from_yaml(surgery)) == repr(surgery)


def test_it_reads_nothing_back() -> None:
    plain = reads_per_step(fused=True)
    for method in (PCGrad(), CAGrad()):
        assert reads_per_step(GradientSurgery(method=method, params="body"), fused=True) == plain


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda loss: loss, "training_step must return its losses for GradientSurgery.*got losses=None"),
        (lambda loss: {"loss": loss, "losses": {}}, "must return its losses"),
        (lambda loss: {"loss": loss, "losses": [loss]}, "must return its losses"),
        (
            lambda loss: {"loss": loss, "losses": {"a": 1.0}},
            "losses must hold tensors of one number, got 'a'",
        ),
        (lambda loss: {"loss": loss, "losses": {"a": loss, "b": loss}}, "loss must be the sum of losses"),
    ],
)
def test_losses_are_refused_at_the_first_batch(output: Any, message: str) -> None:
    class Odd(Three):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
            return output(super().training_step(batch, batch_idx)["loss"])

    module = Odd()
    before = weights(module)
    with pytest.raises(ValueError, match=message):
        trainer(GradientSurgery()).fit(module, Loader())
    assert_equal(weights(module), before)
    trainer(GradientSurgery(method=Sum())).fit(module, Loader())  # which needs none


def test_losses_that_change_are_refused() -> None:
    class Changing(Three):
        def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            found = super().losses(batch)
            return found if self.global_step < 2 else dict(list(found.items())[:2])

    with pytest.raises(
        ValueError, match=r"losses must be the same in each batch, \('0', '1', '2'\), got \('0', '1'\)"
    ):
        trainer(GradientSurgery()).fit(Changing(), Loader())


def test_settings_and_places_are_refused() -> None:
    with pytest.raises(TypeError, match="method must be a policy such as PCGrad\\(\\), got 'pcgrad'"):
        GradientSurgery(method="pcgrad")
    with pytest.raises(ValueError, match="params must match"):
        trainer(GradientSurgery(params="trunc")).fit(Three(), Loader())
    with pytest.raises(ConflictError, match="in the order GradientSurgery, GradientClip; got"):
        trainer(GradientClip(), GradientSurgery()).fit(Three(), Loader())


def test_a_task_that_is_solved_leaves_the_step_finite() -> None:
    # In single precision the square of 1e-23 is 0.
    tasks = [[torch.tensor([1.0, 2.0])], [torch.tensor([-1e-23, 1e-23])]]
    weights = PCGrad().weights(
        gramian([[each.clone() for each in task] for task in tasks]), torch.Generator()
    )
    (found,) = combine(tasks, weights)
    assert found is not None
    # By hand: (1, 2) has 0.5 of (-1, 1), whose part 0.5 (-1, 1) does not point against it; nothing is taken.
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0]))
    against = [[torch.tensor([2.0, 1.0])], [torch.tensor([-1e-23, 0.0])]]
    weights = PCGrad().weights(
        gramian([[each.clone() for each in task] for task in against]), torch.Generator()
    )
    (found,) = combine(against, weights)
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0]), rtol=0, atol=1e-6)


def test_losses_without_a_gradient_are_refused_and_their_order_does_not_matter() -> None:
    class Detached(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            parts = {"a": loss * 0.25, "b": loss * 0.75}
            if self.detach:
                parts = {name: part.detach() for name, part in parts.items()}
            return {"loss": loss, "losses": dict(sorted(parts.items(), reverse=bool(batch_idx % 2)))}

    module = Detached()
    module.detach = False
    trainer(GradientSurgery()).fit(module, Loader())
    module.detach = True
    with pytest.raises(ValueError, match=r"losses must have a gradient, .* got \['a', 'b'\] without"):
        trainer(GradientSurgery()).fit(module, Loader())
