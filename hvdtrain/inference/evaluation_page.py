"""The page about an evaluation: accuracy by class, confusions, calibration, and the worst mistakes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hvdtrain import __version__
from hvdtrain.files import write_atomically
from hvdtrain.inference.calibration import BINS, Bin, expected_calibration_error, reliability
from hvdtrain.inference.outcomes import Outcomes
from hvdtrain.report import charts
from hvdtrain.report.charts import Bar, Chart, Line
from hvdtrain.report.html import fill, label_svg
from hvdtrain.report.page import Table
from hvdtrain.report.text import count, plain, ratio
from pipelines.sources.left_out import printable

MATRIX = 20
"""Most classes of a whole confusion matrix; of more, only the most frequent confusions are shown."""
CONFUSIONS = 50
"""Pairs of classes in that list; beside a matrix `BESIDE` are enough."""
BESIDE = 10
OPEN = 30
"""Classes that are seen without opening the list."""


class Mistake(NamedTuple):
    """An image that was predicted wrong."""

    picture: str
    """A `data:` URL; empty if the image could not be read again."""
    name: str
    label: str
    predicted: str
    confidence: float


def render(
    result: dict[str, Any], outcomes: Outcomes, classes: list[str], mistakes: list[Mistake]
) -> str:
    """The page as text. `result`: what `hvdtrain eval --json` prints."""
    names = [printable(name) for name in classes]
    confusion = outcomes.confusion(len(classes))
    bins = reliability(outcomes.confidence, outcomes.right)
    by_class, few = _by_class(confusion, names), len(classes) <= MATRIX
    return fill(
        "evaluation.html",
        title="Evaluation",
        kind="evaluation",
        version=__version__,
        now=time.time(),
        checkpoint=printable(result["checkpoint"]),
        views=result["views"],
        warnings=result["warnings"],
        tiles=_tiles(result, outcomes, bins),
        count=len(outcomes.ids),
        classes=len(classes),
        by_class=by_class,
        open_rows=OPEN,
        matrix=_matrix(confusion, names) if few else None,
        confusions=_confusions(confusion, names, BESIDE if few else CONFUSIONS),
        bins=BINS,
        charts=[(chart, label_svg(charts.svg(chart), chart.title)) for chart in _charts(bins)],
        reliability=_reliability(bins),
        mistakes=mistakes,
        wrong=int((~outcomes.right).sum()),
    )


def write(page: Path, text: str) -> None:
    """Write the page. Raises ResourceError if it cannot be written."""
    write_atomically(page, text.encode("utf-8", errors="replace"))


def _tiles(result: dict[str, Any], outcomes: Outcomes, bins: list[Bin]) -> list[tuple[str, str]]:
    return [
        ("top-1", ratio(result["top1"])),
        ("top-5", ratio(result["top5"])),
        ("loss", plain(result["loss"])),
        ("images", count(result["images"])),
        ("mean confidence", ratio(float(outcomes.confidence.mean()))),
        ("calibration error (ECE)", ratio(expected_calibration_error(bins))),
    ]


def _by_class(confusion: np.ndarray, names: list[str]) -> Table:
    """The classes with images, the lowest accuracy first."""
    totals, hits = confusion.sum(1), np.diagonal(confusion)
    predicted = confusion.sum(0)
    rows = []
    shares = hits / np.maximum(totals, 1)
    for k in np.lexsort((-totals, shares)).tolist():
        if not totals[k]:
            continue
        others = confusion[k].copy()
        others[k] = 0
        most = int(others.argmax())
        instead = f"{names[most]} ({others[most]:,})" if others[most] else ""
        precision = ratio(float(hits[k] / predicted[k])) if predicted[k] else "–"
        rows.append([names[k], count(totals[k]), ratio(float(shares[k])), precision, instead])
    head = ["class", "images", "accuracy", "precision", "taken for"]
    return Table(head, rows, [1, 2, 3])


def _matrix(confusion: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Rows of cells: images, and their share of the row in 0-1."""
    totals = np.maximum(confusion.sum(1, keepdims=True), 1)
    shares = confusion / totals
    rows = [
        (name, [(int(n), float(s)) for n, s in zip(numbers, row, strict=True)])
        for name, numbers, row in zip(names, confusion, shares, strict=True)
    ]
    return {"names": names, "rows": rows}


def _confusions(confusion: np.ndarray, names: list[str], most: int) -> Table:
    """The most frequent pairs of a class and another one that was predicted for it."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    totals = confusion.sum(1)
    rows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:most].tolist():
        true, predicted = divmod(place, len(names))
        if not (images := int(wrong[true, predicted])):
            break
        share = ratio(images / int(totals[true]))
        rows.append([names[true], names[predicted], count(images), share])
    return Table(["class", "taken for", "images", "share of the class"], rows, [2, 3])


def _charts(bins: list[Bin]) -> list[Chart]:
    measured = Line(
        "network", [one.confidence for one in bins], [one.accuracy for one in bins], width=2
    )
    ideal = Line("perfectly calibrated", [0.0, 1.0], [0.0, 1.0], color=3, dash=1, width=1)
    total = max(1, sum(one.images for one in bins))
    images = tuple(Bar(f"{100 * one.high:.0f}", one.images / total, color=0) for one in bins)
    return [
        Chart(
            "reliability",
            "Reliability",
            "confidence",
            "accuracy",
            "below the dashed line the network is too sure",
            lines=(measured, ideal),
        ),
        Chart(
            "confidences",
            "Confidences",
            "confidence up to, %",
            "share of images",
            bars=images,
        ),
    ]


def _reliability(bins: list[Bin]) -> Table:
    rows = [
        [
            f"{100 * one.low:.0f}–{100 * one.high:.0f}\N{NO-BREAK SPACE}%",
            count(one.images),
            ratio(one.confidence),
            ratio(one.accuracy),
        ]
        for one in bins
    ]
    return Table(["confidence", "images", "mean confidence", "accuracy"], rows, [1, 2, 3])
