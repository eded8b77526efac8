"""The numbers: which mean LAWA keeps, from either store; what it refuses."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

import lightning_tricks as lt
from lightning_tricks.lifecycle import files
from tests.averaging.watching import Watch, live_of, parameters
from tests.toys import Loader, Toy, TwoOptimizers, assert_equal, scaler_plugin, trainer, weights

VALIDATION = Loader(2, seed=9, fixed=True)
STORES = ["disk", "memory"]


def exact_mean(steps: list[dict[str, Tensor]], moments: list[int]) -> dict[str, Tensor]:
    """The mean of the parameters after these steps, summed exactly, and rounded to their type."""
    chosen = [parameters(steps[moment]) for moment in moments]
    means = {}
    for name, like in chosen[0].items():
        entries = zip(*(each[name].double().flatten().tolist() for each in chosen), strict=True)
        mean = torch.tensor([math.fsum(those) / len(chosen) for those in entries], dtype=torch.float64)
        means[name] = mean.view(like.shape).float().to(like.dtype)
    return means


def run(
    lawa: lt.LAWA, root: Path, module: LightningModule | None = None, *others: Callback, **settings: Any
) -> tuple[LightningModule, Watch, Trainer]:
    module, watch = module or Toy(), Watch()
    runner = trainer(lawa, *others, watch, default_root_dir=root, **settings)
    runner.fit(module, Loader(), VALIDATION)
    return module, watch, runner


MOMENTS: list[tuple[dict[str, Any], list[int]]] = [
    ({"k": 3, "every": 2}, [10, 12, 14]),
    ({"k": 10, "every": 4}, [4, 8, 12]),
    ({"k": 2}, [10, 15]),
    ({"k": 1, "every": "20%"}, [15]),
    ({"k": 5, "every": 1}, [11, 12, 13, 14, 15]),
]


@pytest.mark.parametrize(("store", "precision"), [("disk", "32-true"), ("memory", "bf16-true")])
@pytest.mark.parametrize(("settings", "moments"), MOMENTS)
def test_mean_is_of_the_last_to_the_bit(
    settings: dict[str, Any], moments: list[int], precision: str, store: Any, tmp_path: Path
) -> None:
    lawa = lt.LAWA(store=store, **settings)
    module, watch, _ = run(lawa, tmp_path, precision=precision)
    assert lawa.outcome() == {"snapshots": len(moments)}
    assert_equal(parameters(weights(module)), exact_mean(watch.steps, moments))
    assert_equal(parameters(live_of(lawa, module)), parameters(watch.steps[-1]))


def test_training_itself_stays_as_it_is(tmp_path: Path) -> None:
    plain, lawa = Toy(), lt.LAWA(k=2, every=3)
    trainer().fit(plain, Loader(), VALIDATION)
    module, _, _ = run(lawa, tmp_path)
    assert_equal(live_of(lawa, module), weights(plain))


@pytest.mark.parametrize("store", STORES)
def test_two_optimizers_accumulation_and_a_scaler(store: Any, tmp_path: Path) -> None:
    for index, (module, settings, moments) in enumerate(
        [
            (TwoOptimizers(), {}, [12, 14]),
            (Toy(), {"accumulate_grad_batches": 2}, [6, 8]),
            (Toy(fused=True), {"plugins": [scaler_plugin()]}, [12, 14]),
        ]
    ):
        lawa = lt.LAWA(k=2, every=2, store=store)
        _, watch, _ = run(lawa, tmp_path / str(index), module, **settings)
        assert_equal(parameters(weights(module)), exact_mean(watch.steps, moments))


def test_files_are_those_that_fusion_collects(tmp_path: Path) -> None:
    fusion = lt.WeightFusion(collect=lt.EverySteps(5, k=2), keep="always", update_batchnorm=False)
    _, watch, _ = run(lt.LAWA(k=2), tmp_path, None, fusion)
    ours, theirs = (sorted((tmp_path / "checkpoints" / name).iterdir()) for name in ("lawa", "snapshots"))
    assert [path.name for path in ours] == [path.name for path in theirs]
    for path, step in zip(ours, (10, 15), strict=True):
        assert_equal(files.load(path), watch.steps[step])


class Shy(Toy):
    """Leaves a weight out of its state dict."""

    def state_dict(self, *args: Any, **settings: Any) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict(*args, **settings)
        del state["head.bias"]
        return state


def test_weights_that_a_state_dict_leaves_out_are_averaged_too(tmp_path: Path) -> None:
    shy, plain = Shy(), Toy()
    for index, module in enumerate((shy, plain)):
        runner = trainer(lt.LAWA(k=2, every=2), default_root_dir=tmp_path / str(index))
        runner.fit(module, Loader(), VALIDATION)
    assert_equal(dict(shy.named_parameters()), dict(plain.named_parameters()))


def test_two_have_folders_of_their_own_and_a_trial_writes_none(tmp_path: Path) -> None:
    pair = [lt.LAWA(k=1, label="a/b"), lt.LAWA(k=2, label="c", evaluate=False, update_batchnorm=False)]
    trainer(*pair, default_root_dir=tmp_path).fit(Toy(), Loader(), VALIDATION)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["lawa-a%2Fb", "lawa-c"]
    lawa, module = lt.LAWA(k=2, every=1), Toy()
    trainer(lawa, default_root_dir=tmp_path / "trial", fast_dev_run=3).fit(module, Loader(), VALIDATION)
    assert lawa.outcome() == {"snapshots": 2}
    assert not (tmp_path / "trial").exists()


class Late(Callback):
    """Opens the head before the 7th step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module.head.requires_grad_(trainer.global_step >= 6)


@pytest.mark.parametrize("store", STORES)
def test_what_is_opened_late_counts_with_its_former_weights_too(store: Any, tmp_path: Path) -> None:
    for k, moments in ((10, [2, 4, 6, 8, 10, 12, 14]), (5, [6, 8, 10, 12, 14])):
        module = Toy()
        module.head.requires_grad_(False)
        _, watch, _ = run(lt.LAWA(k=k, every=2, store=store), tmp_path / str(k), module, Late())
        assert_equal(parameters(weights(module)), exact_mean(watch.steps, moments))


class Spoils(Callback):
    """Lets a weight be no number after the 4th step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 4:
            pl_module.head.bias.data[0] = math.nan


class Mends(Callback):
    """Lets it be a number again."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module.head.bias.data.nan_to_num_()


@pytest.mark.parametrize("store", STORES)
def test_what_is_no_number_leaves_with_its_snapshot(store: Any, tmp_path: Path) -> None:
    module, watch, lawa = Toy(), Watch(), lt.LAWA(k=3, every=2, store=store)
    runner = trainer(Spoils(), lawa, Mends(), watch, default_root_dir=tmp_path)
    runner.fit(module, Loader(), VALIDATION)
    assert watch.seen[0]["head.bias"].isnan().any()
    assert_equal(parameters(weights(module)), exact_mean(watch.steps, [10, 12, 14]))
    assert lawa.outcome() == {"snapshots": 3}


def test_a_second_fit_goes_on_and_one_of_other_weights_begins_anew(tmp_path: Path) -> None:
    lawa = lt.LAWA(k=3, every=2)
    module, watch, runner = run(lawa, tmp_path)
    runner.fit_loop.max_epochs = 4
    runner.fit(module, Loader(), VALIDATION)
    assert_equal(parameters(weights(module)), exact_mean(watch.steps, [16, 18, 20]))
    module.head.weight.data += 1
    runner.fit_loop.max_epochs = 5
    runner.fit(module, Loader(), VALIDATION)
    assert_equal(parameters(weights(module)), exact_mean(watch.steps, [22, 24]))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_copy_of_a_trainer_goes_on_with_snapshots_in_memory(tmp_path: Path) -> None:
    _, watch, runner = run(lt.LAWA(k=3, every=2, store="memory"), tmp_path)
    other = copy.deepcopy(runner)
    for each in (other, runner):
        each.fit_loop.max_epochs = 4
        each.fit(each.lightning_module, Loader(), VALIDATION)
    assert_equal(weights(runner.lightning_module), weights(other.lightning_module))
    assert_equal(parameters(weights(runner.lightning_module)), exact_mean(watch.steps, [16, 18, 20]))


def test_memory_has_a_bound_and_what_it_takes_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = 5 * 4 * (4 * 8 + 8 + 8 + 8 + 8 * 3 + 3)
    with pytest.raises(ValueError, match=f"max_bytes must be at least {size} for k=5 snapshots .*, got 99:"):
        trainer(lt.LAWA(k=5, store="memory", max_bytes=99)).fit(Toy(), Loader())
    trainer(lt.LAWA(k=5, store="memory", max_bytes=size)).fit(Toy(), Loader())
    assert "LAWA: its 5 snapshots take up to 0.00166 MB of memory, and of each" in capsys.readouterr().out
    trainer(lt.LAWA(k=5, max_bytes=99), default_root_dir=tmp_path).fit(Toy(), Loader())


@pytest.mark.parametrize("average_first", [True, False])
@pytest.mark.parametrize(
    "build", [lambda: lt.LAWA(k=2, every=2), lambda: lt.SWAWeights(start=2, every=2)], ids=["LAWA", "SWA"]
)
def test_fusion_collects_the_mean_on_demand(build: Any, average_first: bool, tmp_path: Path) -> None:
    mean, watch, module = build(), Watch(), Toy()
    fusion = lt.WeightFusion(
        collect=lt.LastEpochs(2), source="average", keep="always", update_batchnorm=False
    )
    pair = [mean, fusion] if average_first else [fusion, mean]
    trainer(*pair, watch, default_root_dir=tmp_path).fit(module, Loader(), VALIDATION)
    for name, value in parameters(weights(module)).items():
        torch.testing.assert_close(value, (watch.seen[1][name] + watch.seen[2][name]) / 2)
