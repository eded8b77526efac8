"""The mixin: against a slow twin, what stays out of the student, hidden features, resumed runs, logs."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lightning_tricks as lt
from lightning_tricks import Distillation, Teacher, Teachers
from lightning_tricks.objectives.hidden_features import Projection
from tests.contract.mixing import Student, teacher_for
from tests.contract.test_laws import STOPS, traces
from tests.host_reads import HostReads
from tests.toys import Loader, Logged, StopAfter, StopError, Toy, assert_equal, seed, trainer, weights
from tests.yaml_trainer import yaml_module


class Taught(Student, Toy):
    """The toy with a wider teacher if its features are to be matched."""

    def __init__(self, teachers: Teachers | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.save_hyperparameters(logger=False)
        self.teachers = teachers
        if teachers is not None and teachers.matches_features:
            self.build_projections(torch.randn(2, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


def wide_teacher() -> nn.Sequential:
    seed(7)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 3))


def with_features(**settings: Any) -> Teachers:
    features = {"body.0": "0", "body.[2-3]": "[2-3]", "head": "4"}
    return Teachers(Teacher(wide_teacher(), features=features), **settings)


class Named(nn.Linear):
    """Returns more than logits."""

    def forward(self, inputs: Tensor) -> Any:
        return {"logits": super().forward(inputs)}


def logged(module: Toy, *others: Any, **settings: Any) -> list[dict[str, float]]:
    rows = Logged("distillation")
    trainer(rows, *others, **settings).fit(module, Loader(), Loader(2, seed=9, fixed=True))
    return rows.rows


def test_what_is_no_logits_is_named() -> None:
    module, batch = Taught(Teachers(Named(4, 3))), next(iter(Loader()))
    with pytest.raises(TypeError, match="tensor of logits, got dict of teacher 0: override teacher_logits"):
        module.distill(module(batch[0]), batch)
    with pytest.raises(TypeError, match=r"student_logits must be a tensor.*got tuple: .*distill\(logits, ba"):
        module.distill(batch, module(batch[0]))  # type: ignore[arg-type]


def test_a_teacher_that_says_nan_is_named_before_a_step() -> None:
    torn = wide_teacher()
    torn[4].bias.data[1] = torch.nan
    module = Taught(Teachers([wide_teacher(), torn]))
    before = weights(module)["head.weight"].clone()
    with pytest.raises(ValueError, match="teachers must predict finite logits, got others of teacher 1"):
        trainer(max_epochs=1).fit(module, Loader())
    assert torch.equal(before, module.head.weight)


class Twin(Toy):
    """As Hinton et al. write it, sample by sample; teachers by their arithmetic mean of probabilities."""

    def __init__(self, teachers: list[nn.Module], shares: list[float]) -> None:
        super().__init__(optimizer="SGD")  # others would follow what rounding leaves of gradients of 0
        self.hidden, self.shares = [teacher.eval() for teacher in teachers], shares

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        if not self.training:
            return super().loss(batch)
        logits, losses = self.head(self.body(batch[0])), []
        for sample in range(8):
            q = (logits[sample] / 3.0).softmax(0)
            p = torch.zeros(3)
            for teacher, share in zip(self.hidden, self.shares, strict=True):
                p = p + share * (teacher(batch[0])[sample].detach() / 3.0).softmax(0)
            soft = sum(p[k] * (p[k].log() - q[k].log()) for k in range(3))
            hard = -logits[sample].softmax(0)[batch[1][sample]].log()
            losses.append(0.25 * hard + 0.75 * 3.0**2 * soft)
        return sum(losses) / 8


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_is_that_of_the_papers_formulas(count: int) -> None:
    networks = [wide_teacher(), teacher_for(Toy())][:count]
    shares = [1.0] if count == 1 else [0.75, 0.25]
    members = [Teacher(n, weight=4 * share) for n, share in zip(networks, shares, strict=True)]
    teachers = Teachers(members, temperature=3.0, alpha=0.75)
    taught, twin = Taught(teachers, optimizer="SGD"), Twin(networks, shares)
    for module in (taught, twin):
        trainer(max_epochs=1).fit(module, Loader())
    for name, value in weights(twin).items():
        torch.testing.assert_close(weights(taught)[name], value, rtol=1e-4, atol=1e-5)


def test_teachers_stay_as_they_are_and_out_of_everything(tmp_path: Path) -> None:
    network = wide_teacher().train()  # as a user may leave it
    before = weights(network)
    module = Taught(Teachers(network), lr=0.05)
    assert module.hparams.keys() == {"teachers", "lr"}
    runner = trainer(max_epochs=2)
    runner.fit(module, Loader(), Loader(2, seed=9, fixed=True))
    assert_equal(before, weights(network))
    assert not network.training
    module.train()
    assert not network.training
    assert all(p.grad is None for p in network.parameters())
    assert not set(network.parameters()) & set(module.parameters())
    runner.save_checkpoint(tmp_path / "a.ckpt")
    runner.save_checkpoint(tmp_path / "b.ckpt", weights_only=True)
    for path in tmp_path.iterdir():
        found = torch.load(path, weights_only=True)
        assert found["state_dict"].keys() == Toy().state_dict().keys()
        assert found["hyper_parameters"].keys() == {"lr"}
        # Nor anywhere else: no tensor in the file has a shape of the teacher's alone.
        tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
        assert all(16 not in tensor.shape for tensor in tensors)
    assert Taught.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).teachers is None


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_a_resumed_run_with_projections_equals_an_uninterrupted_one(stop: Any, tmp_path: Path) -> None:
    def run(*others: Any, ckpt_path: Path | None = None) -> Toy:
        module = Taught(with_features(alpha="linear(to=0.2)", temperature="4 * cosine(to=0.5)"))
        loaders = Loader(), Loader(2, seed=9, fixed=True)
        trainer(*others, lt.WarmupCosine()).fit(module, *loaders, ckpt_path=ckpt_path)
        return module

    whole, saved = run(), tmp_path / "stopped.ckpt"
    with pytest.raises(StopError):
        run(StopAfter(stop[1], saved, stop[0]))
    assert_equal(weights(whole), weights(run(ckpt_path=saved)))
    names = {name for name in whole.state_dict() if "projections" in name}
    assert names == {f"feature_projections.{i}.linear.{p}" for i in (0, 1, 2) for p in ("weight", "bias")}


def test_hidden_features_are_matched_by_projections_that_learn() -> None:
    module = Taught(with_features(alpha=0.0))
    module.build_projections(torch.zeros(3, 4))
    modes = [part.training for part in module.modules()]
    assert all(modes)
    made = module.feature_projections
    assert [type(each).__name__ for each in made] == ["Projection"] * 3 + ["Identity"]
    before = weights(module)
    rows = logged(module, max_epochs=8)
    assert not torch.equal(before["feature_projections.0.linear.weight"], made[0].linear.weight)
    assert rows[-1]["distillation/features"] < 0.5 * rows[0]["distillation/features"]
    assert traces(module, trainer()) == []
    assert not any(part._forward_hooks for part in module.teachers.members[0].network.modules())


def test_a_projection_is_a_convolution_of_size_one() -> None:
    projection = Projection(3, 5, dim=1)
    conv = nn.Conv2d(3, 5, 1)
    conv.load_state_dict(
        {"weight": projection.linear.weight[..., None, None], "bias": projection.linear.bias}
    )
    images = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(projection(images), conv(images))


def test_what_is_logged_is_what_counts_in_the_loss() -> None:
    class Checked(Taught):
        def distill(self, student_logits: Tensor, batch: Any, **settings: Any) -> Tensor:
            loss = super().distill(student_logits, batch, **settings)
            same = (student_logits.argmax(1) == self.ask_teachers(batch)[0].argmax(1)).float().mean()
            self.log_dict({"loss": loss, "same": same, "own": cross_entropy(student_logits, batch[1])})
            return loss

    for row in logged(Checked(with_features(alpha=0.3, feature_weight=0.5)), max_epochs=1):
        hard, soft, features = (row[f"distillation/{name}"] for name in ("hard", "soft", "features"))
        assert row["loss"] == pytest.approx(0.7 * hard + 0.3 * soft + 0.5 * features, rel=1e-5)
        assert row["own"] == pytest.approx(hard)
        assert row["distillation/agreement"] == pytest.approx(row["same"])


def test_a_step_that_does_not_log_waits_for_nothing() -> None:
    counts = []
    for module in (Toy(fused=True), Taught(with_features(), fused=True)):
        counts.append([])
        for batches in (20, 40):
            with HostReads() as reads:
                trainer(max_epochs=1, log_every_n_steps=1000).fit(module, Loader(batches))
            counts[-1].append(reads.count)
    assert counts[0][1] - counts[0][0] == counts[1][1] - counts[1][0]


def test_a_loss_on_labels_of_ones_own_and_none_at_all() -> None:
    logits, batch = torch.randn(8, 3, requires_grad=True), (torch.randn(8, 4), torch.randint(3, (8,)))
    half, alone = Taught(Teachers(wide_teacher())), Taught(Teachers(wide_teacher(), alpha=1.0))
    smooth = cross_entropy(logits, batch[1], label_smoothing=0.1)
    soft = alone.distill(logits, batch[0])
    torch.testing.assert_close(half.distill(logits, batch, label_loss=smooth), 0.5 * smooth + 0.5 * soft)
    mask = torch.arange(8) < 3
    few = alone.distill(logits[:3], (batch[0][:3],))
    torch.testing.assert_close(alone.distill(logits, batch, mask=mask), few)


def test_teachers_keep_their_precision() -> None:
    for precision in ("bf16-mixed", "bf16-true", "64-true"):
        network = wide_teacher().half() if precision == "64-true" else wide_teacher()
        kind = network[0].weight.dtype
        trainer(max_epochs=1, precision=precision).fit(Taught(Teachers(network)), Loader())
        assert network[0].weight.dtype == kind


def test_validation_may_distill_and_a_second_fit_doubles_nothing() -> None:
    class Everywhere(Taught):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.distill(self(batch[0]), batch))

    module = Everywhere(with_features(alpha="linear(to=0.2)"))
    runner = trainer(max_epochs=1, num_sanity_val_steps=2)
    for epochs in (1, 2):
        runner.fit_loop.max_epochs = epochs
        runner.fit(module, Loader(), Loader(2, seed=9, fixed=True))
        assert traces(module, runner) == []
    assert sum(callback.__class__.__name__ == "_Lessons" for callback in runner.callbacks) == 1
    assert runner.validate(module, Loader(2, seed=9, fixed=True), verbose=False)[0]["val_loss"] > 0
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(Taught(with_features())))):
        trainer(max_epochs=1).fit(again, Loader())


@pytest.mark.parametrize("build", [lambda: Teachers(wide_teacher()), with_features])
def test_others_may_look_at_the_loss(build: Any) -> None:
    module = Taught(build())
    network = module.teachers.members[0].network
    before = weights(network)
    ewc = lt.ElasticWeightConsolidation(strength=1.0, data=Loader(1))
    trainer(ewc, lt.SharpnessAware(), max_epochs=1).fit(module, Loader())
    assert_equal(before, weights(network))


class FromYAML(Taught):
    def __init__(self, teachers: Teachers) -> None:
        super().__init__(teachers)


def test_settings_from_yaml(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "linear.pt")
    linear = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 3}}
    networks = [linear, {"network": linear, "weight": 2.0, "checkpoint": str(tmp_path / "linear.pt")}]
    given = {"networks": networks, "alpha": 0.9, "temperature": "2 * linear(to=0.5)"}
    module = yaml_module({"model": {"teachers": given}, "trainer": {"logger": False}}, FromYAML)
    assert module.teachers.weights == [1.0, 2.0]
    assert (module.teachers.alpha, module.teachers.temperature) == (0.9, "2 * linear(to=0.5)")


def test_the_card_is_complete() -> None:
    headings = ("When", "Changes", "Logs", "Saves", "Cost", "Use")
    assert all(f"* **{heading}**" in str(Distillation.__doc__) for heading in headings)
