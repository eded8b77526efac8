"""Norms that are replaced for a Trainer's runs, with their checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lightning_tricks as lt
from lightning_tricks.network.frozen_batchnorm import FrozenBatchNorm
from tests.toys import Compiled, Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights

VALIDATION = Loader(2, seed=9, fixed=True)


def group() -> lt.ReplaceNorm:
    return lt.ReplaceNorm(to="group", groups=2)


class Grouped(Toy):
    """Replaces its norm by itself."""

    def __init__(self) -> None:
        super().__init__()
        lt.replace_norm_(self, to="group", groups=2)


class Late(Toy):
    """Makes its norm in ``configure_model``."""

    def configure_model(self) -> None:
        if not isinstance(self.body[1], nn.GroupNorm):
            self.body[1] = nn.BatchNorm1d(8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "a.ckpt"
    runner = trainer(group())
    runner.fit(Toy(), Loader(), VALIDATION)
    runner.save_checkpoint(path)
    return path


def test_the_run_is_that_of_a_module_with_the_new_layers(capsys):
    module, own = Late(), Grouped()
    technique = group()
    trainer(technique).fit(module, Loader(), VALIDATION)
    trainer().fit(own, Loader(), VALIDATION)
    assert_equal(weights(module), weights(own))
    assert technique.outcome() == {"replaced": 1}
    told = capsys.readouterr().out
    assert "ReplaceNorm: layers replaced: 1" in told
    assert "| body.1 | BatchNorm1d | GroupNorm(2, 8) | weight, bias |" in told


@pytest.mark.parametrize("to", ["layer", "frozen_batch", "sync_batch"])
def test_a_resumed_run_equals_the_uninterrupted_one(to, tmp_path):
    whole = Late()
    trainer(lt.ReplaceNorm(to=to)).fit(whole, Loader(), VALIDATION)
    path = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(lt.ReplaceNorm(to=to), StopAfter(7, path)).fit(Late(), Loader(), VALIDATION)
    parts = Late()
    trainer(lt.ReplaceNorm(to=to)).fit(parts, Loader(), VALIDATION, ckpt_path=path)
    assert_equal(weights(whole), weights(parts))


def test_evaluations_build_before_they_load(saved):
    module = Grouped.load_from_checkpoint(saved)  # which knows of no technique
    wanted = trainer().validate(module, VALIDATION, verbose=False)
    runner = trainer(group())
    assert runner.validate(Toy(), VALIDATION, ckpt_path=saved, verbose=False) == wanted
    (tested,) = runner.test(Toy(), VALIDATION, ckpt_path=saved, verbose=False)
    assert tested["test_loss"] == wanted[0]["val_loss"]
    first, _ = runner.predict(Toy(), VALIDATION, ckpt_path=saved)
    assert torch.equal(first, module.eval().predict_step(next(iter(VALIDATION)), 0))


def test_the_technique_has_nothing_to_do_where_the_module_replaces(saved, capsys):
    technique, module = group(), Grouped()
    trainer(technique).validate(module, VALIDATION, ckpt_path=saved, verbose=False)
    assert technique.outcome() == {"replaced": 0}
    assert capsys.readouterr().out == ""


def test_a_second_run_on_the_same_module_finds_it_replaced():
    technique, module = group(), Toy()
    runner = trainer(technique, max_epochs=1)
    runner.fit(module, Loader())
    norm = module.body[1]
    runner.fit_loop.max_epochs = 2
    runner.fit(module, Loader())
    runner.test(module, VALIDATION, verbose=False)
    assert module.body[1] is norm
    assert technique.outcome() == {"replaced": 1}


def test_a_checkpoint_of_before_loads_where_names_are_the_same(tmp_path):
    plain = trainer(max_epochs=1)
    plain.fit(Toy(), Loader(), VALIDATION)
    plain.save_checkpoint(tmp_path / "a.ckpt")
    wanted = plain.validate(plain.lightning_module, VALIDATION, verbose=False)
    frozen = trainer(lt.ReplaceNorm(to="frozen_batch"))
    module = Toy()
    assert frozen.validate(module, VALIDATION, ckpt_path=tmp_path / "a.ckpt", verbose=False) == wanted
    assert isinstance(module.body[1], FrozenBatchNorm)


def test_statistics_of_a_frozen_norm_stay_and_its_weights_learn():
    module = Toy()
    before = weights(module)
    trainer(lt.ReplaceNorm(to="frozen_batch"), lt.EMAWeights(decay=0.5)).fit(module, Loader(), VALIDATION)
    after = weights(module)
    assert torch.equal(after["body.1.running_var"], before["body.1.running_var"])
    assert after["body.1.num_batches_tracked"] == 0
    assert not torch.equal(after["body.1.weight"], before["body.1.weight"])


def test_sync_batch_is_batchnorm_in_one_process():
    module, plain = Toy(), Toy()
    trainer(lt.ReplaceNorm(to="sync_batch")).fit(module, Loader(), VALIDATION)
    trainer().fit(plain, Loader(), VALIDATION)
    assert isinstance(module.body[1], nn.SyncBatchNorm)
    assert_equal(weights(module), weights(plain))


def test_a_compiled_part_trains_with_its_new_layers():
    module, plain = Compiled(), Toy()
    for each in (module, plain):
        trainer(group()).fit(each, Loader(), VALIDATION)
    ours = {name.replace("_orig_mod.", ""): value for name, value in weights(module).items()}
    torch.testing.assert_close(ours, weights(plain))


def test_no_norm_is_an_error_before_the_first_batch():
    module = Toy()
    module.body[1] = nn.Identity()
    with pytest.raises(ValueError, match="params must match a BatchNorm.*but Toy has none"):
        trainer(group()).fit(module, Loader())
