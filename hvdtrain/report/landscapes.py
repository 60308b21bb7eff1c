"""Pictures of what is around weights: sharpness, lines, planes and spectra.

They are drawn from the numbers of `hvdtrain study`, one dictionary for each checkpoint. Lines differ
in dashes as well as in colour, bars in hatches, and planes in brightness, so that a grey print shows all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hvdtrain.report.palette import BLACK, BLUE, DASHES, LINES, ORANGE, SKY, YELLOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = Sequence[Mapping[str, Any]]
WIDTH = 6.4
"""Of a picture with one column, in inches: its text is readable at the width of a phone."""
FONT = 11
HATCHES = ("", "//", "..", "xx")
BARS = (BLUE, ORANGE, SKY, YELLOW)
WIDE = 30.0
"""Largest over smallest loss from which an axis is logarithmic."""
LEVELS = 12
EDGE = 0.06
"""Distance from the border, in parts of the axes, within which a level is not written."""
SPLITS = {"train": "training loss", "val": "validation loss"}


def figure_of(study: str, checkpoints: Numbers) -> Figure:
    """The picture of the results of `hvdtrain study STUDY`."""
    if study == "sharpness":
        return _sharpness(checkpoints)
    return _spectra(checkpoints) if study == "hessian" else _landscape(study, checkpoints)


def _sharpness(checkpoints: Numbers) -> Figure:
    """Groups of bars, one group for each checkpoint, a bar for each box."""
    rows = [[_box(row) for row in one["sharpness"]] for one in checkpoints]
    figure = _figure(3.2 + 0.25 * len(rows[0]))
    axes = figure.add_subplot()
    height = 0.8 / len(rows[0])
    for number, label in enumerate(rows[0]):
        values = [one["sharpness"][number]["value"] for one in checkpoints]
        places = [group + height * number for group in range(len(values))]
        bars = axes.barh(
            places,
            values,
            height,
            color=BARS[number % len(BARS)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor=BLACK,
            linewidth=0.6,
            label=label,
        )
        axes.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=FONT - 2)
    middle = 0.4 - height / 2
    axes.set_yticks([group + middle for group in range(len(rows))], [_name(c) for c in checkpoints])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(f"sharpness: 100 · rise of the {_loss(checkpoints)} / (1 + loss)")
    axes.grid(axis="x", color="0.9")
    _dress(axes)
    _legend(figure, axes, 2)
    return figure


def _box(row: Mapping[str, Any]) -> str:
    where = "all weights" if row["subspace"] is None else f"{row['subspace']} random directions"
    return f"{where}, ε = {row['epsilon']:g}"


def _landscape(study: str, checkpoints: Numbers) -> Figure:
    """Lines in one picture, or a panel for each plane."""
    if len(checkpoints[0]["axes"]) == 2:
        return _planes(checkpoints)
    figure = _figure(5.6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for number, one in enumerate(checkpoints):
        style = {
            "color": LINES[number % len(LINES)],
            "linestyle": DASHES[number % len(DASHES)],
            "linewidth": 1.8,
            "label": _name(one) if study == "landscape" else "on the line",
        }
        upper.plot(one["axes"][0], _known(one["loss"]), **style)
        lower.plot(one["axes"][0], 100 * _known(one["top1"]), **style)
    if study == "interpolate":
        for panel in (upper, lower):
            panel.axvline(0, color=BLACK, linestyle=":", linewidth=1.2, label=_name(checkpoints[0]))
            end = _name(checkpoints[0]["to"])
            panel.axvline(1, color=BLACK, linestyle="-.", linewidth=1.2, label=end)
    losses = np.concatenate([_known(one["loss"]).ravel() for one in checkpoints])
    if _wide(losses):
        upper.set_yscale("log")
    upper.set_ylabel(f"{_loss(checkpoints)}\n(nats per image)")
    lower.set_ylabel("top-1 accuracy (%)")
    lower.set_xlabel(
        "α: weights (1 − α) · first + α · second"
        if study == "interpolate"
        else f"distance along a random direction ({_units(checkpoints[0])})"
    )
    for panel in (upper, lower):
        panel.grid(color="0.9")
        _dress(panel)
    _legend(figure, upper, 1)
    return figure


def _planes(checkpoints: Numbers) -> Figure:
    figure = _figure(5.4 * len(checkpoints))  # below each other: side by side they are too small
    losses = np.concatenate([_known(one["loss"]).ravel() for one in checkpoints])
    levels = levels_between(float(np.nanmin(losses)), float(np.nanmax(losses)))
    for number, one in enumerate(checkpoints):
        panel = figure.add_subplot(len(checkpoints), 1, number + 1)
        filled = _plane(panel, one, losses, levels)
    share = 0.85 if len(checkpoints) == 1 else 0.4
    bar = figure.colorbar(filled, ax=figure.axes, shrink=share, anchor=(0, 1), format=short_number)
    bar.set_label(f"{_loss(checkpoints)} (nats per image)")
    return figure


def _plane(panel: Axes, one: Mapping[str, Any], losses: np.ndarray, levels: np.ndarray) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    (xs, ys), values = one["axes"], np.clip(_known(one["loss"]).T, levels[0], levels[-1])
    norm = (LogNorm if _wide(losses) else Normalize)(levels[0], levels[-1])
    filled = panel.contourf(xs, ys, values, levels, cmap="cividis_r", norm=norm)
    lines = panel.contour(xs, ys, values, levels[::2], colors="black", linewidths=0.6)
    _label(panel, lines)
    panel.set_title(_name(one), fontsize=FONT).set_parse_math(False)
    if "path" in one:
        _path(panel, one)
        shares = [f"{100 * share:.0f} % of the squared distance" for share in one["variance"]]
        panel.set_xlabel(f"distance along the first principal direction\n({shares[0]})")
        panel.set_ylabel(f"distance along the second principal direction\n({shares[1]})")
    else:
        panel.plot(0, 0, "*", color="white", markeredgecolor="black", markersize=14)
        panel.set_xlabel(f"first random direction ({_units(one)})")
        panel.set_ylabel("second random direction")
    return filled


def _label(panel: Axes, lines: Any) -> None:
    """Levels on the lines, on a light ground, and not where the border would cut them."""
    from matplotlib.patheffects import withStroke

    xs, ys = panel.get_xlim(), panel.get_ylim()
    for text in panel.clabel(lines, fmt=short_number, fontsize=FONT - 2, inline=False):
        x, y = text.get_position()
        across, up = (x - xs[0]) / (xs[1] - xs[0]), (y - ys[0]) / (ys[1] - ys[0])
        if min(across, 1 - across, up, 1 - up) < EDGE:
            text.remove()
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _path(panel: Axes, one: Mapping[str, Any]) -> None:
    xs, ys = zip(*one["path"], strict=True)
    panel.plot(xs, ys, color="white", linewidth=3.4)
    panel.plot(xs, ys, "o-", color="black", linewidth=1.4, markersize=4)
    panel.plot(xs[-1], ys[-1], "*", color="white", markeredgecolor="black", markersize=14)
    epochs = one["path_epochs"]
    for number in {0, len(epochs) - 1}:
        panel.annotate(
            f"epoch {epochs[number]}",
            (xs[number], ys[number]),
            textcoords="offset points",
            xytext=(6, 8),
            fontsize=FONT - 2,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            zorder=5,
        )


def _spectra(checkpoints: Numbers) -> Figure:
    """The spectral densities, with the largest eigenvalues as marks below."""
    figure = _figure(4.8)
    axes = figure.add_subplot()
    floor = 1e-5 * max(max(one["density"]) for one in checkpoints)
    for number, one in enumerate(checkpoints):
        color, dash = LINES[number % len(LINES)], DASHES[number % len(DASHES)]
        values = np.maximum(np.array(one["density"]), floor)
        error = one["trace_error"]
        spread = "" if not error or not math.isfinite(error) else f" ± {error:.2g}"
        label = f"{_name(one)}: trace {one['trace']:.3g}{spread}"
        axes.plot(one["density_at"], values, dash, color=color, linewidth=1.6, label=label)
        height = floor * 10 ** (0.25 * number + 0.25)
        marks = [height] * len(one["largest"])
        axes.plot(one["largest"], marks, "^", color=color, markersize=7, markeredgecolor="black")
    axes.plot([], [], "^", color="white", markeredgecolor="black", label="largest eigenvalues")
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    axes.set_xlabel(f"eigenvalue of the Hessian of the {_loss(checkpoints)}")
    axes.set_ylabel("density (share of eigenvalues per unit)")
    axes.grid(color="0.9")
    _dress(axes)
    _legend(figure, axes, 1)
    return figure


def _figure(height: float) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": FONT}):
        return Figure(figsize=(WIDTH, height), layout="constrained")


def _dress(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _loss(checkpoints: Numbers) -> str:
    return SPLITS[checkpoints[0]["split"]]


def _name(one: Mapping[str, Any]) -> str:
    return f"{one['name'].rsplit(' ', 1)[0]}, epoch {one['epoch']}"


def short_number(loss: float, _place: int | None = None) -> str:
    """As on a scale: `_place` is what matplotlib gives."""
    return f"{loss:,.0f}" if abs(loss) >= 1000 else f"{loss:.3g}"


def _units(one: Mapping[str, Any]) -> str:
    return "1: the norm of each filter" if one.get("normalised") else "1: the norm of all weights"


def _known(values: Any) -> np.ndarray:
    """With NaN for numbers that are not finite."""
    found = np.array(values, dtype=np.float64)
    return np.where(np.isfinite(found), found, np.nan)


def _wide(losses: np.ndarray) -> bool:
    low, high = np.nanmin(losses), np.nanmax(losses)
    return bool(low > 0 and high > WIDE * low)


def levels_between(low: float, high: float, wide: float = WIDE) -> np.ndarray:
    """The borders of LEVELS levels, in equal ratios if the highest is `wide` times the lowest."""
    if not high > low:
        high = low + 1e-6 * (abs(low) or 1.0)
    spaced = np.geomspace if high > wide * low > 0 else np.linspace
    return np.asarray(spaced(low, high, LEVELS + 1))
