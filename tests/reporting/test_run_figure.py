"""The picture of a run: which lines it has, in which panels, and that it is drawn where it can be."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.figure
import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_tricks import EMAWeights, GradientClip, RunReport, WarmupCosine
from lightning_tricks.lifecycle.figures import COLOURS
from lightning_tricks.reporting.run_figure import RATE, Record, _draw_panel, changes, draw_run, panels_of
from tests.toys import Loader, Toy, trainer

PNG = b"\x89PNG"


def test_kinds_share_a_panel() -> None:
    names = [
        "val_loss",
        "a/norm/0",
        "a/norm/1",
        "a/threshold/0",
        RATE,
        f"{RATE}/1",
        "slow/ema_weights/distance",
    ]
    layers = ["gradient_health/zero/head", "gradient_health/zero/body.0"]
    assert panels_of([*layers, *names]) == {
        "loss": ["val_loss"],
        RATE: [RATE, f"{RATE}/1"],
        "gradient norm": ["a/norm/0", "a/norm/1", "a/threshold/0"],
        "distance of the average, share of the weights' norm": ["slow/ema_weights/distance"],
        "gradient_health/zero": layers,
    }


def test_a_long_line_keeps_its_ends_and_its_order() -> None:
    record = Record()
    for step in range(10_000):
        record.add(step, {"loss": -float(step), "flat": 1.0})
    steps, values = record.lines["loss"]
    assert len(steps) <= 2000 and (steps[0], steps[-1]) == (0, 9999)
    assert steps == sorted(steps) and values == [-float(step) for step in steps]
    assert changes(record) == ["loss"]


def test_it_is_drawn_into_the_loggers_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger, report = CSVLogger(tmp_path), RunReport()
    techniques = [WarmupCosine(), GradientClip(max_norm=0.1), EMAWeights(decay=0.5), report]
    trainer(*techniques, logger=logger, max_epochs=2).fit(Toy(), Loader(), Loader(fixed=True))
    path = Path(logger.log_dir) / "RunReport.png"
    assert path.read_bytes().startswith(PNG)
    assert f"RunReport: a figure of it is {path}" in capsys.readouterr().out
    lines = report._record.lines
    assert lines["val_loss"][0] == [5, 10]
    assert lines["gradient_clip/norm"][0] == list(range(1, 11)) == lines[RATE][0]
    assert lines["gradient_clip/threshold"][1] == pytest.approx([0.1] * 10)


def test_no_folder_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer(WarmupCosine(), RunReport(), max_epochs=1).fit(Toy(), Loader())
    logger = CSVLogger(tmp_path / "logs")
    trainer(WarmupCosine(), RunReport(figure=False), logger=logger, max_epochs=1).fit(Toy(), Loader())
    assert not list(tmp_path.rglob("*.png"))


def test_runs_that_share_a_folder_keep_their_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "RunReport.png"
    path.write_bytes(b"another run's")
    logger = CSVLogger(tmp_path, name="", version="")
    trainer(WarmupCosine(), RunReport(), logger=logger, max_epochs=1).fit(Toy(), Loader())
    assert path.read_bytes() == b"another run's"
    assert f"a figure of it is {tmp_path / 'RunReport-v1.png'}" in capsys.readouterr().out
    assert (tmp_path / "RunReport-v1.png").read_bytes().startswith(PNG)


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for figure in (False, True):
        report = RunReport(figure=figure)
        trainer(WarmupCosine(), report, logger=CSVLogger(tmp_path), max_epochs=1).fit(Toy(), Loader())
        told = 'no figure is drawn: matplotlib must be installed: pip install "lightning_tricks[plots]"\n'
        assert (f"RunReport: {told}" in capsys.readouterr().out) == figure
    assert not list(tmp_path.rglob("*.png"))


def test_a_figure_of_one_line(tmp_path: Path) -> None:
    record = Record()
    for step in (1, 2):
        record.add(step, {"loss": float(step)})
    draw_run(record, tmp_path / "a.png", title="two steps")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("layer", ["body", "a.layer.with.a.very.long.name"])
def test_no_legend_lies_on_a_line(layer: str) -> None:
    record = Record()
    names = [f"gradient_health/zero/{layer}.{index}" for index in range(len(COLOURS))]
    for step in (1, 2):
        record.add(step, dict.fromkeys(names, float(step)))
    figure = matplotlib.figure.Figure(layout="constrained", figsize=(4.2, 4.0))
    panel = figure.subplots()
    _draw_panel(panel, "gradient_health/zero", names, record)
    figure.draw_without_rendering()
    legend = panel.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][-1] == f"{layer}.6"
    ink, whole = legend.get_window_extent(), figure.bbox
    assert ink.y1 < panel.xaxis.get_tightbbox().y0 < panel.bbox.y0
    assert (ink.x0, ink.y0) >= (whole.x0, whole.y0) and ink.x1 <= whole.x1


def test_layers_with_the_same_numbers_stay_lines_of_their_own() -> None:
    record = Record()
    names = ["gradient_health/zero", "gradient_health/zero/first", RATE, f"{RATE}/1"]
    for step in (1, 2):
        record.add(step, dict.fromkeys(names, float(step)))
    figure = matplotlib.figure.Figure()
    layers, rates = figure.subplots(1, 2)
    _draw_panel(layers, "gradient_health/zero", names[:2], record)
    _draw_panel(rates, RATE, names[2:], record)
    assert len(layers.lines) == 2 and len(rates.lines) == 1
