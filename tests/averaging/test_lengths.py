from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch

from lightning_tricks import evaluate_lengths, synthesize_ema
from lightning_tricks.averaging.power_profile import sigma_rel_of
from lightning_tricks.averaging.synthesis import Synthesis
from lightning_tricks.averaging.trajectory import Moment, Trajectory, as_stored, write_index
from lightning_tricks.lifecycle.files import save

GAMMAS = 16.97, 6.94


def ramp(place: Path, *, count: int = 20, frozen_until: int = 0) -> Path:
    """Write what is kept of a run in which one weight is t, of a tied one, and of a frozen one."""
    names = []
    for index in range(1, count + 1):
        t = 1000 * index
        # The mean of t under each profile.
        means = [torch.full((2, 2), (gamma + 1) / (gamma + 2) * t) for gamma in GAMMAS]
        averages = [{"w": mean, "tied": mean} for mean in means]
        other = {"late": torch.full((3,), 7.0)}
        live = {"count": torch.tensor(t)}
        if index > frozen_until:
            averages = [{**each, **other} for each in averages]
        else:
            live |= other
        names.append(f"{index:06d}.pt")
        moment = Moment("", GAMMAS, t, 1, averages, live)
        save(moment.as_tensors(), place / names[-1])
    write_index(place, names)
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ramp(tmp_path_factory.mktemp("run") / "post_hoc_ema")


@pytest.mark.parametrize(
    ("gamma", "within"), [(16.97, 1e-6), (25.0, 1e-4), (6.94, 1e-6), (3.0, 1e-3), (1.0, 6e-3)]
)
def test_the_mean_of_a_ramp_is_that_of_the_profile(place, gamma, within):
    found = synthesize_ema(place, sigma_rel=sigma_rel_of(gamma))
    assert found["w"].mean() / 20_000 == pytest.approx((gamma + 1) / (gamma + 2), rel=within)
    assert found["count"] == 20_000
    assert found["tied"] is found["w"]


def test_a_weight_that_training_leaves_alone_keeps_its_value(place, tmp_path):
    for run in (place, ramp(tmp_path, frozen_until=5)):
        for sigma_rel in (0.04, 0.2, 0.25):
            torch.testing.assert_close(
                synthesize_ema(run, sigma_rel=sigma_rel)["late"], torch.full((3,), 7.0)
            )


def test_eight_and_twenty_snapshots_give_what_the_card_says(place, tmp_path):
    eight = ramp(tmp_path, count=8)
    widths = [0.05 + 0.0025 * index for index in range(21)]
    for run, most in ((eight, 0.014), (place, 0.0031)):
        errors = [Synthesis.of(Trajectory.read(run), sigma_rel=width).error for width in widths]
        assert most * 0.8 < max(errors) < most
    for width in (0.03, 0.25):
        assert Synthesis.of(Trajectory.read(place), sigma_rel=width).error < 0.1


def test_lengths_are_measured_in_their_order_and_drawn(place, tmp_path):
    seen = []

    def score(state):
        seen.append(state)
        return {"mean": state["w"].mean(), "count": int(state["count"])}

    rows = evaluate_lengths(place, score, sigma_rels=(0.2, 0.05), step=10_000, png=tmp_path / "a.png")
    assert [row.sigma_rel for row in rows] == [0.2, 0.05]
    assert rows[1].metrics == pytest.approx({"mean": 17.97 / 18.97 * 10_000, "count": 10_000}, rel=1e-4)
    assert rows[1].gamma == pytest.approx(16.97, abs=0.01)
    assert rows[1].error < 1e-4 < rows[0].error
    assert_state = synthesize_ema(place, sigma_rel=0.2, step=10_000)
    assert all(torch.equal(seen[0][name], value) for name, value in assert_state.items())
    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert picture.shape[0] > picture.shape[1] * 0.9  # a panel for each metric


def test_a_single_number_goes_by_the_name_of_the_function(place):
    def loss(state):
        return 1.5

    assert [row.metrics for row in evaluate_lengths(place, loss, sigma_rels=[0.1])] == [{"loss": 1.5}]


def test_mistakes_are_told_before_anything_is_measured(place, monkeypatch, tmp_path):
    def never(state):
        raise AssertionError

    with pytest.raises(ValueError, match=r"sigma_rel must be a width .*, got 0.01"):
        evaluate_lengths(place, never, sigma_rels=(0.1, 0.01))
    with pytest.raises(ValueError, match="sigma_rels must hold at least one"):
        evaluate_lengths(place, never, sigma_rels=())
    with pytest.raises(
        TypeError, match="evaluate must return a number, or numbers by name, got <lambda>: None"
    ):
        evaluate_lengths(place, lambda state: None, sigma_rels=[0.1])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning_tricks\[plots\]"):
        evaluate_lengths(place, never, png=tmp_path / "a.png")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"snapshots": []}', "must hold snapshots, each after the one before, got steps []"),
        ('{"snapshots": ["000002.pt", "000001.pt"]}', r"got steps \[2000, 1000\]"),
        ('{"snapshots": 3}', "index.json must name snapshots"),
        ("[]", "index.json must name snapshots"),
        ("{", "index.json must name snapshots"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, index, message):
    place = ramp(tmp_path, count=2)
    (place / "index.json").write_text(index)
    with pytest.raises(ValueError, match=message.replace("[]", r"\[\]")):
        Trajectory.read(place)


def test_a_damaged_file_is_refused(tmp_path):
    place = ramp(tmp_path, count=3)
    torn = place / "000002.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(ValueError, match="000002.pt must be a whole file"):
        Trajectory.read(place)
    save({"w": torch.zeros(1)}, torn)
    with pytest.raises(ValueError, match="000002.pt must be a snapshot of post_hoc_ema"):
        Trajectory.read(place)
    save(Moment("", GAMMAS, 2000, 1, [{}, {}], {}).as_tensors(), torn)
    with pytest.raises(ValueError, match="000002.pt must hold 'w', as later snapshots do"):
        synthesize_ema(place, sigma_rel=0.075)


def test_what_16_bits_cannot_hold_stays_as_it_is():
    tied = torch.ones(3)
    given = {
        "w": tied,
        "tied": tied,
        "large": torch.tensor([1.0, 65_520.0]),
        "nan": torch.tensor([float("nan")]),
        "complex": torch.ones(2, dtype=torch.complex64),
        "empty": torch.ones(0),
    }
    stored = as_stored(given, torch.float16)
    assert stored["tied"] is stored["w"]
    narrow = {name for name, value in stored.items() if value.dtype == torch.float16}
    assert narrow == {"w", "tied", "empty"}
    assert all(stored[name] is given[name] for name in given.keys() - narrow)
    assert as_stored(given, None) == given
