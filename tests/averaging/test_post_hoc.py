"""Averages of any length after a run, against those that a whole record of its weights gives."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_tricks import PostHocEMA, synthesize_ema
from lightning_tricks.averaging.power_profile import gamma_of
from lightning_tricks.averaging.trajectory import Trajectory
from tests.averaging.watching import Watch, parameters
from tests.toys import Loader, Toy, assert_equal, trainer, weights

EPOCHS = 20  # of 5 steps


def run(
    root: Path, *callbacks: Callback, module: Any = None, epochs: int = EPOCHS, **settings: Any
) -> tuple[Toy, Watch, Trainer]:
    """Train with a technique and return the module, its weights after each step, and the Trainer."""
    module, watch = module or Toy(lr=0.01), Watch()
    runner = trainer(*callbacks, watch, default_root_dir=root, max_epochs=epochs, **settings)
    runner.fit(module, Loader())
    return module, watch, runner


def folder(root: Path) -> Path:
    return root / "checkpoints" / "post_hoc_ema"


def brute_force(
    steps: list[dict[str, Tensor]], sigma_rel: float, moves: Iterable[int] | None = None
) -> dict[str, Tensor]:
    """The average of a whole record, in the paper's notation; ``moves`` are the steps at which it moves."""
    gamma, before = gamma_of(sigma_rel), 0
    mean = {name: value.double() for name, value in steps[0].items()}
    for t in moves or range(1, len(steps)):
        beta = (1 - (t - before) / t) ** (gamma + 1)
        mean = {name: beta * mean[name] + (1 - beta) * steps[t][name].double() for name in mean}
        before = t
    return mean


def gap(found: dict[str, Tensor], expected: dict[str, Tensor], steps: list[dict[str, Tensor]]) -> float:
    """How far two averages are from one another, as a share of how far the weights went."""
    names = parameters(expected)
    difference = torch.cat([(found[name] - expected[name]).flatten() for name in names])
    way = torch.cat([(steps[-1][name] - steps[0][name]).flatten() for name in names])
    return float(difference.norm() / way.norm())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Toy, list[dict[str, Tensor]]]:
    root = tmp_path_factory.mktemp("recorded")
    module, watch, _ = run(root, PostHocEMA())
    return root, module, watch.steps


@pytest.mark.parametrize(
    ("sigma_rel", "within"), [(0.05, 1e-5), (0.1, 1e-5), (0.075, 1e-4), (0.15, 1e-3), (0.25, 2e-2)]
)
def test_an_average_of_any_length_is_that_of_the_whole_record(recorded, sigma_rel, within):
    root, module, steps = recorded
    found = synthesize_ema(root / "checkpoints", sigma_rel=sigma_rel)
    assert gap(found, brute_force(steps, sigma_rel), steps) < within
    # It is told apart from its neighbours by more than that.
    assert gap(found, brute_force(steps, 1.1 * sigma_rel), steps) > within
    Toy().load_state_dict(found)
    for name, value in module.state_dict().items():
        assert torch.equal(found[name], value) == (name not in parameters(found)), name


def test_it_changes_nothing_and_is_seen_nowhere(recorded):
    root, module, steps = recorded
    plain, watch, _ = run(root / "plain")
    assert_equal(weights(module), weights(plain))
    assert_equal(steps, watch.steps)


def test_the_files_can_be_read_without_the_run(recorded):
    root, _, steps = recorded
    moments = Trajectory.read(folder(root)).moments
    assert [moment.updates for moment in moments] == list(range(5, 101, 5))
    for moment in moments[::6]:
        assert (moment.gammas, moment.every) == ((16.97, 6.94), 1)
        for average, sigma_rel in zip(moment.averages, (0.05, 0.1), strict=True):
            expected = brute_force(steps[: moment.updates + 1], sigma_rel)
            assert gap(average, expected, steps) < 1e-4
        assert_equal(moment.live["body.1.running_mean"], steps[moment.updates]["body.1.running_mean"])


def test_a_run_may_be_taken_to_have_ended_earlier(recorded):
    root, _, steps = recorded
    found = synthesize_ema(folder(root), sigma_rel=0.15, step=50)
    assert gap(found, brute_force(steps[:51], 0.15), steps) < 1e-3
    assert torch.equal(found["body.1.running_mean"], steps[50]["body.1.running_mean"])
    for step in (52, 500):
        with pytest.raises(ValueError, match=r"step must be that of a snapshot, nearest .*, got "):
            synthesize_ema(folder(root), step=step)


def test_what_the_snapshots_cannot_give_is_refused(recorded):
    root, _, _ = recorded
    for sigma_rel in (0.01, 0.28):
        with pytest.raises(ValueError, match=f"sigma_rel must be a width .*, got {sigma_rel} with"):
            synthesize_ema(folder(root), sigma_rel=sigma_rel)
    with pytest.raises(ValueError, match="sigma_rel must lie in"):
        synthesize_ema(folder(root), sigma_rel=0.3)
    with pytest.raises(FileNotFoundError, match="must be a folder of snapshots"):
        synthesize_ema(root)


@pytest.mark.parametrize(("every", "snapshot_every"), [(2, "10%"), (10, 4)])
def test_averages_that_move_seldom_have_the_same_length(tmp_path, every, snapshot_every):
    """A snapshot moves them too, so that they are up to date in it."""
    _, watch, _ = run(tmp_path, PostHocEMA(every=every, snapshot_every=snapshot_every), epochs=8)
    found = synthesize_ema(folder(tmp_path), sigma_rel=0.075)
    moves = sorted({*range(every, 41, every), *range(4, 41, 4)})
    assert gap(found, brute_force(watch.steps, 0.075, moves), watch.steps) < 1e-3
    assert gap(found, brute_force(watch.steps, 0.075), watch.steps) < 0.05
    assert gap(found, brute_force(watch.steps, 0.15), watch.steps) > 0.05


def test_skipped_steps_count_for_nothing(tmp_path):
    module = Toy(lr=0.01)
    skips = {2, 3, 17}

    class Skip(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step in skips:
                for parameter in pl_module.parameters():
                    parameter.grad = None
                skips.remove(trainer.global_step)

    _, watch, _ = run(tmp_path, PostHocEMA(snapshot_every="1 epoch"), Skip(), module=module, epochs=8)
    assert Trajectory.read(folder(tmp_path)).updates[-1] == 37
    steps = [watch.steps[0]]
    for state in watch.steps[1:]:
        if any(not torch.equal(state[name], steps[-1][name]) for name in parameters(state)):
            steps.append(state)
    found = synthesize_ema(folder(tmp_path), sigma_rel=0.12)
    assert gap(found, brute_force(steps, 0.12), steps) < 1e-3


def test_half_precision_halves_the_files_and_keeps_what_it_cannot_hold(tmp_path):
    def of(name: str, **settings: Any) -> tuple[int, dict[str, Tensor]]:
        module = Toy(lr=0.01)
        module.head = torch.nn.Linear(8, 4096)
        module.head.bias.data[0] = 1e6
        run(tmp_path / name, PostHocEMA(**settings), module=module, epochs=4)
        files = sorted(folder(tmp_path / name).glob("*.pt"))
        return sum(file.stat().st_size for file in files), synthesize_ema(folder(tmp_path / name))

    (whole, expected), (half, found) = of("whole"), of("half", file_dtype="float16")
    assert half < 0.6 * whole
    assert found["head.weight"].dtype == torch.float32
    torch.testing.assert_close(found["head.weight"], expected["head.weight"], rtol=0, atol=2e-4)
    assert not torch.equal(found["head.weight"], expected["head.weight"])
    assert torch.equal(found["head.bias"], expected["head.bias"])
