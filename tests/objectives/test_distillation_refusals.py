"""What the mixin and its teachers refuse, by name, before the first batch or before anything is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_tricks import ConflictError, CutMix, Distillation, Mixup, Teacher, Teachers
from lightning_tricks.objectives.hidden_features import HiddenFeatures, projection_for
from tests.fuzz.verdicts import Batches
from tests.objectives.test_distillation import Taught, wide_teacher, with_features
from tests.toys import Loader, Toy, TwoOptimizers, assert_equal, trainer, weights

NET = nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Teachers([]), "teachers must hold at least one network, got \\[\\]"),
        (lambda: Teachers("big.ckpt"), r"torch.nn.Module, got 'big.ckpt': .*Teacher\(network, checkpoint="),
        (lambda: Teachers(nn.DataParallel(NET)), "wrapped for several devices, got DataParallel: .*module"),
        (lambda: Teachers(NET, alpha=1.5), r"alpha must lie in \[0.0, 1.0\], got 1.5"),
        (lambda: Teachers(NET, alpha="2 * linear(to=0.0)"), r"every value of alpha must lie in"),
        (lambda: Teachers(NET, temperature=0.0), r"temperature must lie in \(0.0, inf\), got 0.0"),
        (lambda: Teachers(NET, feature_weight=-1.0), "feature_weight must lie in"),
        (lambda: Teacher(NET, weight=0.0), "weight must lie in"),
        (lambda: Teacher(NET, features={"body": ""}), "pattern of features must not be empty"),
        (lambda: with_features(cached=True), "cached must be False where features are matched"),
    ],
)
def test_settings_that_cannot_be(build: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        build()


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def test_a_checkpoint_is_loaded_safely_and_whole(tmp_path: Path) -> None:
    module = Toy()
    runner = trainer(max_epochs=1)
    runner.fit(module, Loader())
    runner.save_checkpoint(tmp_path / "toy.ckpt")
    head, network = nn.Linear(8, 3), Toy()
    Teacher(head, checkpoint=str(tmp_path / "toy.ckpt"))  # as it is "head." there, and nothing else fits
    assert_equal(weights(head), weights(module.head))
    Teacher(network, checkpoint=str(tmp_path / "toy.ckpt"))
    assert_equal(weights(network), weights(module))
    before, state = weights(NET), NET.state_dict()
    wrong = {
        "must hold the weights of Linear, but .* lacks 'bias'": {"weight": state["weight"]},
        "holds besides 'extra'": {**state, "extra": torch.zeros(1)},
        r"got 'bias' with shape \(5,\) for \(3,\)": {**state, "bias": torch.zeros(5)},
        "tensors and plain values alone, .* or load it yourself": {"state_dict": {**state, "run": Path("x")}},
    }
    for words, content in wrong.items():
        with pytest.raises(ValueError, match=words):
            Teacher(NET, checkpoint=saved(tmp_path / "wrong.pt", content))
        assert_equal(before, weights(NET))
    twins = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3)).state_dict()
    with pytest.raises(ValueError, match="one network that fits, got '0.', '1.'"):
        Teacher(NET, checkpoint=saved(tmp_path / "twins.pt", twins))
    with pytest.raises(FileNotFoundError):
        Teacher(NET, checkpoint=str(tmp_path / "none.ckpt"))


class Registered(Taught):
    def __init__(self) -> None:
        super().__init__()
        self.big = wide_teacher()
        self.teachers = Teachers(self.big)


class Assigned(Taught):
    def __init__(self) -> None:
        super().__init__()
        self.teachers = wide_teacher()


class Forgetful(Taught):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.body.parameters(), *self.head.parameters()], lr=0.1)


class WithoutPart(Taught):
    def configure_callbacks(self) -> Any:
        return []


class ByHand(Taught, TwoOptimizers):
    training_step = TwoOptimizers.training_step
    configure_optimizers = TwoOptimizers.configure_optimizers

    def __init__(self, teachers: Teachers) -> None:
        super().__init__(teachers)
        self.automatic_optimization = False


def missed(pattern: str, other: str) -> Teachers:
    return Teachers(Teacher(wide_teacher(), features={pattern: other}))


def unbuilt(teachers: Teachers) -> Toy:
    module = Taught()
    module.teachers = teachers
    return module


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (Taught, r"teachers of Taught must be Teachers\(...\), .* got None"),
        (Assigned, r"must be Teachers\(...\), .* got Sequential"),
        (Registered, "share no parameter with the student, got 'big.0.weight'"),
        (
            lambda: Forgetful(with_features()),
            r"an optimizer must have the projections, got none with feature_p",
        ),
        (lambda: ByHand(with_features()), r"an optimizer must have the projections"),
        (lambda: unbuilt(missed("bodi", "0")), "student's features must match a layer, .*; nearest: 'body'"),
        (lambda: unbuilt(missed("body", "9")), "teacher's features must match a layer, got '9'"),
        (
            lambda: unbuilt(missed("body.*", "0")),
            "equally many layers, got 4 for 'body.\\*' .* and 1 for '0'",
        ),
    ],
)
def test_modules_are_refused_before_the_first_batch(build: Any, words: str) -> None:
    seen = Batches()
    with pytest.raises((TypeError, ValueError), match=words):
        trainer(seen, max_epochs=1).fit(build(), Loader())
    assert seen.count == 0


class Odd(Loader):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def __iter__(self) -> Any:
        return map(self.change, super().__iter__())


@pytest.mark.parametrize(
    ("build", "change", "words"),
    [
        (lambda: Taught(Teachers(nn.Linear(4, 5))), tuple, "as many classes apart as the student, 3, got 5"),
        (lambda: Taught(Teachers(wide_teacher())), lambda b: (b[0], b[1] + 1), r"lie in \[0, 2\].*, got 3"),
        (
            lambda: Taught(Teachers(wide_teacher())),
            lambda b: (b[0], b[1][:3]),
            r"labels must have shape \(8,\)",
        ),
        (
            lambda: Taught(Teachers(wide_teacher())),
            lambda b: (b[0],),
            "must hold labels where alpha is below 1",
        ),
        (lambda: unbuilt(missed("head", "2")), tuple, r"call self.build_projections\(inputs\)"),
        (
            lambda: WithoutPart(Teachers(wide_teacher())),
            tuple,
            r"configure_callbacks of WithoutPart must return",
        ),
    ],
)
def test_batches_are_refused_before_a_step(build: Any, change: Any, words: str) -> None:
    module = build()
    before = {name: value for name, value in weights(module).items() if "body.1" not in name}
    with pytest.raises((RuntimeError, ValueError), match=words):
        trainer(max_epochs=1).fit(module, Odd(change))
    assert_equal(before, {name: weights(module)[name] for name in before})
    assert not any(part._forward_hooks for part in module.modules())


def test_labels_of_a_later_batch_are_named_too() -> None:
    loader = Odd(lambda b: b)
    loader.change = lambda b: (b[0], b[1] + 3 * (loader.done > 3))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\]"):
        trainer(max_epochs=1, log_every_n_steps=100).fit(Taught(Teachers(wide_teacher())), loader)


def test_features_that_differ_in_more_than_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"differ in width alone, got shapes \(2, 8\) and \(2, 4, 1\)"):
        Taught(Teachers(Teacher(nn.Sequential(nn.Unflatten(1, (4, 1))), features={"body.0": "0"})))
    pair = torch.zeros(2, 8, 4, 4), torch.zeros(2, 16, 2, 4)
    with pytest.raises(ValueError, match="width alone"):
        projection_for(*pair, names="these")


def test_what_ran_in_an_evaluation_alone_does_not_count() -> None:
    student, teacher = nn.Linear(4, 3), wide_teacher()
    holder = nn.Sequential(student)
    watched = HiddenFeatures(holder, [Teacher(teacher, features={"0": "4"})])
    watched.open()
    for recording in (True, False):
        with torch.set_grad_enabled(recording):
            holder(torch.zeros(2, 4)), teacher(torch.zeros(2, 4))
        if recording:
            ((names, own, theirs),) = watched.taken()
            assert (names, own.shape, theirs.shape) == ("'0' and '4'", (2, 3), (2, 3))
    with pytest.raises(ValueError, match="got NoneType of the student's in '0' and '4'"):
        watched.taken()


def test_what_never_distils_says_so() -> None:
    class Silent(Distillation, Toy):
        teachers = Teachers(wide_teacher())

    with pytest.warns(UserWarning, match="the first batch did not call distill"):
        trainer(max_epochs=1).fit(Silent(), Loader())


def test_the_mixin_comes_first() -> None:
    with pytest.raises(TypeError, match="Late must inherit Distillation before LightningModule"):

        class Late(LightningModule, Distillation):
            pass


class Numbered(Dataset[tuple[Tensor, ...]]):
    """Samples with their index, with noise on inputs, or with other indices."""

    def __init__(self, *, noise: float = 0.0, first: int = 0) -> None:
        generator = torch.Generator().manual_seed(3)
        self.inputs, self.labels = torch.randn(20, 4, generator=generator), torch.arange(20) % 3
        self.noise, self.first = noise, first

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        inputs = self.inputs[index] + self.noise * torch.randn(4)
        return inputs, self.labels[index], torch.tensor(index + self.first)


class Counts(nn.Sequential):
    calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += len(inputs)
        return super().forward(inputs)


def learnt(teachers: Teachers, *callbacks: Any) -> Toy:
    module = Taught(teachers)
    loader = DataLoader(Numbered(), 4, shuffle=True, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    trainer(*callbacks).fit(module, loader)
    return module


def test_cached_logits_are_those_of_the_samples_whatever_the_order() -> None:
    asked, cached = Counts(*wide_teacher()), Counts(*wide_teacher())
    plain, fast = learnt(Teachers(asked)), learnt(Teachers(cached, cached=True))
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(fast)[name], value, rtol=1e-4, atol=1e-5)
    assert (asked.calls, cached.calls) == (60, 24)  # once each, and the first batch to compare


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (lambda: DataLoader(Numbered(noise=3.0), 4), "cached must be False where a sample's inputs change"),
        (
            lambda: DataLoader(Numbered(first=1), 4),
            r"its own index for cached, got \[1, 2, 3, 4\] for samples 0",
        ),
        (
            lambda: DataLoader(TensorDataset(torch.zeros(8, 4), torch.zeros(8).long()), 4),
            "distillation_indices",
        ),
        (Loader, "cached needs a DataLoader over a dataset"),
    ],
)
def test_cached_refuses_what_it_would_mistake(loader: Any, words: str) -> None:
    module = Taught(Teachers(wide_teacher(), cached=True))
    before = {name: value for name, value in weights(module).items() if "body.1" not in name}
    with pytest.raises(ValueError, match=words):
        trainer(max_epochs=1).fit(module, loader())
    assert_equal(before, {name: weights(module)[name] for name in before})


@pytest.mark.parametrize("mixing", [Mixup(classes=3, probability=0.5), CutMix(classes=3)])
def test_cached_does_not_go_with_mixing_whatever_the_first_batch_shows(mixing: Any) -> None:
    with pytest.raises(ConflictError, match="'batch' must have one owner, .* give Teachers cached=False"):
        learnt(Teachers(wide_teacher(), cached=True), mixing)
