"""The technique: smoothed in training batches, and never elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor, nn

import lightning_tricks as lt
from tests.toys import Loader, Logged, StopAfter, StopError, Toy, assert_equal, seed, trainer, weights

VALIDATION = Loader(2, seed=9, fixed=True)


class WithLoss(Toy):
    """Calls one loss object everywhere, and notes its smoothing in each stage."""

    def __init__(self, criterion: nn.Module | None = None) -> None:
        super().__init__()
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.seen: dict[str, list[float]] = {}

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        stage = str(self.trainer.state.stage.value)
        self.seen.setdefault(stage, []).append(getattr(self.criterion, "label_smoothing", -1.0))
        return super().loss(batch)


class Written(Toy):
    """As one writes it without the technique."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.smoothing = 0.3
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.smoothing = 0.0
        super().validation_step(batch, batch_idx)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.head(self.body(batch[0])), batch[1], label_smoothing=self.smoothing)


def test_a_run_is_the_one_with_torchs_smoothing_written_out():
    runs = []
    for module, used in ((WithLoss(), [lt.LabelSmoothing(smoothing=0.3)]), (Written(), [])):
        runner = trainer(*used)
        runner.fit(module, Loader(), VALIDATION)
        runs.append((weights(module), runner.callback_metrics["val_loss"]))
    assert_equal(*runs)


def test_it_smooths_in_training_only_along_the_schedule():
    module, logged = WithLoss(), Logged("label_smoothing")
    smoothing = lt.LabelSmoothing(smoothing="0.3 * linear(to=0.0)")
    runner = trainer(smoothing, logged, num_sanity_val_steps=1, val_check_interval=2)
    runner.fit(module, Loader(), VALIDATION)
    runner.validate(module, VALIDATION, verbose=False)
    runner.test(module, VALIDATION, verbose=False)
    expected = [0.3 - 0.02 * step for step in range(15)]
    assert module.seen["train"] == pytest.approx(expected)
    assert logged.column("smoothing") == pytest.approx(expected)
    others = [value for stage, values in module.seen.items() if stage != "train" for value in values]
    assert set(others) == {0.0} and module.seen.keys() >= {"sanity_check", "validate", "test"}
    assert module.criterion.label_smoothing == 0.0


def test_batches_of_an_accumulation_are_smoothed_alike():
    module = WithLoss()
    smoothing = lt.LabelSmoothing(smoothing="linear(to=0.0, start=0.9, over=3)")
    trainer(smoothing, accumulate_grad_batches=2, max_epochs=1).fit(module, Loader())
    assert module.seen["train"] == pytest.approx([0.9, 0.9, 0.6, 0.6, 0.3])


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end"])
def test_the_loss_is_as_it_was_after_an_error_and_a_resumed_run_goes_on(hook, tmp_path):
    schedule = "linear(to=0.0, start=0.6)"
    whole = WithLoss()
    trainer(lt.LabelSmoothing(smoothing=schedule)).fit(whole, Loader(), VALIDATION)
    broken, saved = WithLoss(), tmp_path / "a.ckpt"
    stop = StopAfter(7 if hook == "on_train_batch_end" else 1, saved, hook)
    with pytest.raises(StopError):
        trainer(stop, lt.LabelSmoothing(smoothing=schedule)).fit(broken, Loader(), VALIDATION)
    assert broken.criterion.label_smoothing == 0.0 and not broken.criterion._forward_pre_hooks
    parts = WithLoss()
    trainer(lt.LabelSmoothing(smoothing=schedule)).fit(parts, Loader(), VALIDATION, ckpt_path=saved)
    assert_equal(weights(whole), weights(parts))


class Fails(nn.CrossEntropyLoss):
    """Fails within a training step."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if self.label_smoothing and input.requires_grad:
            raise StopError
        return super().forward(input, target)


def test_an_error_within_the_first_step_leaves_nothing():
    module = WithLoss(Fails())
    with pytest.raises(StopError):
        trainer(lt.LabelSmoothing()).fit(module, Loader())
    assert module.criterion.label_smoothing == 0.0 and not module.criterion._forward_pre_hooks


class Breaks(Callback):
    """Ends an epoch before a batch, which then has no end."""

    def __init__(self, module: WithLoss) -> None:
        self.module, self.after = module, -1.0
        module.on_train_batch_start = lambda batch, index: -1 if index == 2 else None

    def on_train_end(self, *_: Any) -> None:
        self.after = self.module.criterion.label_smoothing


def test_a_batch_that_is_left_out_leaves_the_loss_as_it_was():
    module = WithLoss()
    breaks = Breaks(module)
    trainer(breaks, lt.LabelSmoothing(), max_epochs=1).fit(module, Loader())
    assert len(module.seen["train"]) == 2 and breaks.after == 0.0


def test_a_shared_loss_is_one_and_several_are_chosen_by_name():
    module = WithLoss()
    module.twice, module.other = module.criterion, nn.ModuleDict({"aux": nn.CrossEntropyLoss()})
    smoothing = lt.LabelSmoothing(smoothing=0.2, losses=("twice", "criterion"))
    trainer(smoothing, max_epochs=1).fit(module, Loader())
    assert set(module.seen["train"]) == {0.2}
    each = [lt.LabelSmoothing(losses=name, label=name) for name in ("criterion", "twice")]
    with pytest.raises(lt.ConflictError, match="'label_smoothing' must have one owner"):
        trainer(*each).fit(module, Loader())
    with pytest.warns(UserWarning, match="the first batch did not call 'other.aux'"):
        trainer(lt.LabelSmoothing(), max_epochs=1).fit(module, Loader())


class Wrong(WithLoss):
    """Its third label of the second batch is outside the classes."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        batch[1][2] = -100 if batch_idx == 0 else 3
        return super().training_step(batch, batch_idx)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits, loss = self.head(self.body(batch[0])), self.criterion
        return loss(target=batch[1], input=logits) if self.global_step else loss(logits, batch[1])


def test_labels_outside_the_classes_are_named():
    module = Wrong()
    with pytest.raises(ValueError, match="labels of 'criterion' must hold classes from 0 to 2, got 3"):
        trainer(lt.LabelSmoothing()).fit(module, Loader())
    assert module.global_step == 1
    assert not module.criterion._forward_pre_hooks


class Focal(nn.CrossEntropyLoss):
    """A loss of its own that only looks like torch's."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(input, target, self.weight).square()


class Flat(nn.CrossEntropyLoss):
    """A loss that takes another shape, or other arguments, and is torch's."""

    def forward(self, input: Tensor, target: Tensor, scale: Tensor | None = None) -> Tensor:
        assert input.ndim == 3 or scale is None
        return super().forward(input.flatten(0, -2), target.flatten())


@pytest.mark.parametrize(
    ("module", "settings", "words"),
    [
        (
            Toy,
            {},
            "LabelSmoothing needs an nn.CrossEntropyLoss .* got none in Toy: .* smoothed_cross_entropy",
        ),
        (
            WithLoss,
            {"losses": "critrion"},
            "losses must match an nn.CrossEntropyLoss, .*nearest: 'criterion'",
        ),
        (
            lambda: WithLoss(nn.CrossEntropyLoss(label_smoothing=0.1)),
            {},
            "one owner, got LabelSmoothing and 'criterion' with label_smoothing=0.1 of its own",
        ),
        (
            lambda: WithLoss(Focal()),
            {},
            "must heed label_smoothing, got 'criterion': forward of Focal does not",
        ),
        (lambda: WithLoss(Focal(torch.ones(3))), {}, "forward of Focal does not"),
    ],
)
def test_what_could_not_be_smoothed_is_refused_before_training(module, settings, words):
    with pytest.raises(ValueError, match=words):
        trainer(lt.LabelSmoothing(**settings)).fit(module(), Loader())


def test_a_loss_with_another_forward_is_smoothed():
    module = WithLoss(Flat(torch.tensor([1.0, 2.0, 3.0])))
    plain = Flat(torch.tensor([1.0, 2.0, 3.0]))
    trainer(lt.LabelSmoothing(smoothing=0.2), max_epochs=1).fit(module, Loader())
    assert set(module.seen["train"]) == {0.2}
    assert module.criterion.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("smoothing", [1.0, -0.1, "linear(to=1.0)", "2.0 * linear(to=0.0)"])
def test_smoothing_lies_below_one(smoothing):
    with pytest.raises(ValueError, match="smoothing must lie in|every value of smoothing"):
        lt.LabelSmoothing(smoothing=smoothing)


class Whole(nn.Module):
    """A network with its loss, to be compiled as one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.criterion = nn.Linear(4, 3), nn.CrossEntropyLoss()

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.criterion(self.layer(x), target)


def test_a_compiled_loss_is_smoothed():
    class Module(Toy):
        def __init__(self, whole: nn.Module) -> None:
            super().__init__()
            self.whole = whole

        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self.whole(*batch)

    results = []
    for compiled in (False, True):
        seed(5)
        module = Module(Whole())
        if compiled:
            module.whole = torch.compile(module.whole, backend="aot_eager")
        runner = trainer(lt.LabelSmoothing(smoothing="0.4 * step(every='1 epoch', gamma=0.5)"))
        runner.fit(module, Loader(), VALIDATION)
        names = ("whole.layer.weight", "whole._orig_mod.layer.weight")
        results.append([weights(module)[names[compiled]], runner.callback_metrics["val_loss"]])
    torch.testing.assert_close(*results)
