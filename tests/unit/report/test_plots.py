"""Plots: nothing is cut, legends cover nothing, and the colours differ for any colour vision."""

from __future__ import annotations

import colorsys
import importlib
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from hvdtrain.analysis import lr_range
from hvdtrain.report import landscapes, palette, plots, shares
from hvdtrain.report.run import read_run
from tests.launch import REPOSITORY
from tests.report_runs import Log, restarted

LOST = ("data", "communication", "straggling", "padding", "other")


def with_causes(root: Path, other: float = 0.05) -> Path:
    log = Log(root)
    for step in (10, 20, 30):
        values = {f"lost_{cause}_ratio": 0.01 for cause in LOST} | {"lost_other_ratio": other}
        log.train(1000 + step, step, **values)
    return root


def assert_shows_all(figure: Figure) -> None:
    """Every line is inside the limits of its axes, and no legend lies on axes with lines."""
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        (left, right), (bottom, top) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
        for line in axes.get_lines():
            if line.get_transform() != axes.transData:
                continue  # a line across the axes
            points = np.asarray(line.get_xydata())
            points = points[np.isfinite(points).all(axis=1)]  # others are gaps
            assert (points >= (left, bottom)).all()
            assert (points <= (right, top)).all()
    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    assert legends
    for legend, axes in itertools.product(legends, figure.axes):
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert figure.bbox.count_contains(legend.get_window_extent().corners()) == 4


def lr_result(losses: list[float], smoothed: list[float]) -> lr_range.LRRange:
    rates = np.geomspace(1e-4, 1, len(losses)).tolist()
    return lr_range.LRRange(rates, losses, smoothed, 64, 1.0)


@pytest.mark.parametrize("end", [3.0, 300.0])
def test_tune_lr_shows_every_loss(end: float) -> None:
    falling = np.linspace(2.3, 0.8, 40).tolist()
    assert_shows_all(lr_range.draw(lr_result([*falling[:-1], 0.1, end], [*falling, 2.0])))


def test_scaling_shows_every_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hvdtrain.cli import main
    from hvdtrain.scaling import plot

    drawn: list[Figure] = []
    draw = plot.draw
    monkeypatch.setattr(plot, "draw", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    config = str(REPOSITORY / "configs/imagenet_resnet50_diux_4.yaml")
    line = ["hvdtrain", "scaling", "predict", config, "--step-ms", "80", "--image-size", "224"]
    line += ["--batch", "224", "--nodes", "1,4,16", "--link", "10,25,50,100"]
    monkeypatch.setattr(sys, "argv", [*line, "--plot", str(tmp_path / "p.png")])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code in (0, None)
    assert_shows_all(drawn[0])
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()][-1] == "100 Gbit/s"


def test_the_large_batch_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    large_batch: Any = importlib.import_module("large_batch")
    curve = [(5.0, 0.4), (10.0, 0.7)]
    results = {
        name: {key: [{"curve": curve}, {"curve": []}] for key in trainings}
        for name, trainings in large_batch.EXPERIMENTS.items()
    }
    assert_shows_all(large_batch.draw(results))
    assert_shows_all(large_batch.draw({"batch": results["batch"]}))


def test_pictures_of_a_report(tmp_path: Path) -> None:
    runs = [read_run(with_causes(tmp_path / "lost")), read_run(restarted(tmp_path / "waits").root)]
    found = [plot for _title, section in plots.sections(runs, []) for plot in section]
    assert [p.stem for p in found if isinstance(p, shares.Shares)] == ["shares-1", "shares-2"]
    for plot in found:
        assert_shows_all(plots.png_figure(plot, ["lost", "waits"]))


def studied(name: str, **numbers: object) -> dict[str, object]:
    about = {"name": f"{name} e0003-s0000000000", "epoch": 3, "split": "train", "normalised": True}
    return {**about, **numbers}


def test_lines_and_spectra_of_studies() -> None:
    losses = [9.0, 0.01, math.inf]
    lines = [
        studied(name, axes=[[-1, 0, 1]], loss=losses, top1=[0.2, 0.9, 0.1])
        for name in ("a_$x", "b")
    ]
    ends = [{**lines[0], "to": studied("b")}]
    density = {"density_at": [-1.0, 0.0, 5.0], "density": [0.0, 2.0, 1e-9]}
    known = {"largest": [5.0, 1.0], "trace": 3.0, "trace_error": math.nan}
    spectra = [studied("a", **density, **known), studied("b", **density, **known)]
    rows = [{"subspace": p, "epsilon": 1e-3, "value": 12.5} for p in (None, 100)]
    for study, numbers in {
        "landscape": lines,
        "interpolate": ends,
        "hessian": spectra,
        "sharpness": [studied("a", sharpness=rows), studied("b", sharpness=rows)],
    }.items():
        figure = landscapes.figure_of(study, numbers)
        assert_shows_all(figure)
        assert all(axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes)


@pytest.mark.parametrize(
    "losses", [[[1.0, 2.0], [3.0, 4.0]], [[0.1, 50.0], [1.0, math.nan]], [[2.0] * 2] * 2]
)
def test_planes_of_studies_share_their_levels(losses: list[list[float]]) -> None:
    plane = studied("a", axes=[[-1, 1], [-1, 1]], loss=losses)
    path = {
        "path": [(0.5, 0.5), (0.2, 0.0), (0.0, 0.0)],
        "path_epochs": [1, 2, 3],
        "variance": [0.8, 0.2],
    }
    for numbers in ([plane, {**plane, "name": "b e0002-s0000000000"}], [{**plane, **path}]):
        figure = landscapes.figure_of("landscape", numbers)
        FigureCanvasAgg(figure).draw()
        *panels, bar = figure.axes
        assert len(panels) == len(numbers)
        assert bar.get_ylabel() == "training loss (nats per image)"
        assert all(panel.get_xlabel() and panel.get_ylabel() for panel in panels)


def test_shares_fill_100_percent(tmp_path: Path) -> None:
    (plot,) = shares.shares_plots([read_run(with_causes(tmp_path))])
    assert [layer.name for layer in plot.layers] == [*LOST, "not lost"]
    assert [layer.mean for layer in plot.layers] == pytest.approx([0.01] * 4 + [0.05, 0.91])
    assert plot.edges == [0.0, 0.5, 1.0, 1.5]
    assert np.sum([layer.heights for layer in plot.layers], axis=0) == pytest.approx([1.0] * 3)
    axes = Figure().add_subplot()
    shares.draw(axes, plot)
    assert axes.get_ylim() == (0, 1)


def test_gained_time_is_said_and_not_drawn(tmp_path: Path) -> None:
    (plot,) = shares.shares_plots([read_run(with_causes(tmp_path, other=-0.5))])
    assert "below zero" in plot.note
    other, rest = plot.layers[-2:]
    assert (other.heights, other.mean) == ([0.0] * 3, -0.5)
    assert rest.mean == pytest.approx(0.96)


def test_unknown_shares_leave_a_gap(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.train(1010, 10)
    log.train(1020, 20, data_wait_ratio=None)
    (plot,) = shares.shares_plots([read_run(tmp_path)])
    assert [np.isnan(h) for layer in plot.layers for h in layer.heights] == [False, True] * 2
    assert plots.svg(plot).startswith("<svg")


def test_no_red_beside_green() -> None:
    for colors in (palette.OKABE_ITO, palette.LINES, shares.COLORS, landscapes.BARS):
        vivid = [colorsys.rgb_to_hsv(*to_rgb(c)) for c in colors]
        hues = [360 * h for h, saturation, value in vivid if saturation > 0.2 and value > 0.2]
        assert not any(80 < hue < 170 for hue in hues)
        assert len(set(colors)) == len(colors)


def test_every_list_of_colors_differs_without_red_or_green_cones() -> None:
    # Machado et al. 2009, severity 1: protanopia and deuteranopia.
    protan = [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    deutan = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    lists = (palette.LINES, shares.COLORS, landscapes.BARS)
    for matrix, colors in itertools.product((protan, deutan), lists):
        seen = [np.asarray(matrix) @ np.power(to_rgb(color), 2.2) for color in colors]
        seen = [np.power(np.clip(color, 0, 1), 1 / 2.2) for color in seen]
        for one, other in itertools.combinations(seen, 2):
            assert np.linalg.norm(one - other) > 0.15
