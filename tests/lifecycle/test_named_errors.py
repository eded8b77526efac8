"""Errors from within a technique say which one it was, with its settings."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, final

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_tricks import ConflictError, EMAWeights, GradientClip
from lightning_tricks.lifecycle.technique import Technique
from tests.toys import Loader, StopAfter, StopError, Toy, trainer

PHASES = ["prepare", "claims", "regroup", "restore", "begin", "finish"]
HOOKS = ["attach", "on_fit_start", "on_train_batch_end", "on_validation_end", "saved", "read_checkpoint"]


class FaultError(RuntimeError):
    """Raised by :class:`Faulty`."""


@final
@dataclass(eq=False, repr=False, kw_only=True)
class Faulty(Technique):
    """Fails in one of its methods."""

    where: str
    size: float = 0.5

    def __post_init__(self) -> None:
        setattr(self, self.where, self._fail)

    def _fail(self, *_: Any) -> Any:
        raise FaultError("size must be right")

    def claims(self) -> list[Any]:
        return []


def notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


@pytest.mark.filterwarnings("ignore:Faulty.b. was resumed with changed settings")
@pytest.mark.parametrize("where", PHASES + HOOKS)
def test_the_technique_is_named_with_its_settings(where, tmp_path):
    saved = None
    if where in {"restore", "read_checkpoint"}:
        saved = tmp_path / "a.ckpt"
        with pytest.raises(StopError):
            trainer(Faulty(where="none", label="b"), StopAfter(3, saved)).fit(Toy(), Loader())
    callbacks = [GradientClip(), Faulty(where=where, label="b"), ModelCheckpoint(tmp_path)]
    with pytest.raises(FaultError) as caught:
        trainer(*callbacks).fit(Toy(), Loader(), Loader(2), ckpt_path=saved)
    assert str(caught.value) == "size must be right"
    assert notes(caught.value) == [f"in Faulty[b]: Faulty(where='{where}', size=0.5, label='b')"]
    assert "FaultError: size must be right\nin Faulty[b]" in "".join(traceback.format_exception(caught.value))


@final
@dataclass(eq=False, repr=False, kw_only=True)
class Asks(Technique):
    """Needs the average of another."""

    other: Technique

    def begin(self, *_: Any) -> None:
        self.other.average()

    def claims(self) -> list[Any]:
        return []


def test_of_two_the_one_that_failed_is_named():
    other = Faulty(where="average")
    with pytest.raises(FaultError) as caught:
        trainer(Asks(other=other), other).fit(Toy(), Loader())
    assert notes(caught.value) == ["in Faulty: Faulty(where='average', size=0.5)"]


def test_so_it_is_in_an_evaluation():
    with pytest.raises(FaultError) as caught:
        trainer(Faulty(where="on_validation_end")).validate(Toy(), Loader(2), verbose=False)
    assert notes(caught.value) == ["in Faulty: Faulty(where='on_validation_end', size=0.5)"]


def test_of_real_techniques_too():
    with pytest.raises(ValueError, match="params must match") as caught:
        trainer(EMAWeights(), GradientClip(params="hed")).fit(Toy(), Loader())
    assert [note.partition("(")[0] for note in notes(caught.value)] == ["in GradientClip: GradientClip"]


@final
class _Brought(Technique):
    """As a mixin brings it along: of no settings, under the mixin's name."""

    state_key = "Mixin"

    def begin(self, *_: Any) -> None:
        raise FaultError

    def claims(self) -> list[Any]:
        return []


def test_what_a_mixin_brings_is_called_by_the_mixins_name():
    with pytest.raises(FaultError) as caught:
        trainer(_Brought()).fit(Toy(), Loader())
    assert notes(caught.value) == ["in Mixin"]


def test_errors_of_others_are_left_alone():
    class Breaks(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise FaultError

    class Broken(Toy):
        def training_step(self, *_: Any) -> None:
            raise FaultError

    for module, callbacks in ((Toy(), [Breaks()]), (Broken(), [])):
        with pytest.raises(FaultError) as caught:
            trainer(GradientClip(), *callbacks).fit(module, Loader())
        assert notes(caught.value) == []


def test_a_conflict_names_both_sides_itself():
    with pytest.raises(ConflictError) as caught:
        trainer(GradientClip(label="a"), GradientClip(label="b")).fit(Toy(), Loader())
    assert notes(caught.value) == []


class Normed(Toy):
    """Its third batch has one sample."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.norm(batch[0].new_ones(1 if batch_idx == 2 else 2, 4)).sum()


def test_a_batchnorm_that_got_one_sample_is_named():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
        trainer(GradientClip()).fit(Normed(4), Loader())
    [note] = notes(caught.value)
    assert note.startswith("BatchNorm1d 'norm' needs at least 2 samples in training, got a batch of one: ")
    assert "drop_last=True" in note and "GroupNorm" in note


def test_other_errors_of_a_batchnorm_have_no_note():
    with pytest.raises(RuntimeError, match="running_mean") as caught:
        trainer(GradientClip()).fit(Normed(5), Loader())
    assert notes(caught.value) == []


def test_an_interrupt_is_nobodys_fault(monkeypatch):
    seen = []

    class Listens(Callback):
        def on_exception(self, trainer, pl_module, exception) -> None:
            seen.append(notes(exception))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Faulty, "_fail", interrupt)
    with pytest.raises(SystemExit):
        trainer(Faulty(where="begin"), Listens()).fit(Toy(), Loader())
    assert seen == [[]]
