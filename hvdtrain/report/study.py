"""The page about a study or a comparison: tables and charts by section, and every chart as a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hvdtrain import __version__
from hvdtrain.errors import ResourceError
from hvdtrain.files import write_atomically
from hvdtrain.report import charts
from hvdtrain.report.charts import Chart
from hvdtrain.report.html import fill, label_svg
from hvdtrain.report.page import Table


@dataclass(frozen=True)
class Section:
    """A part of the page: what it says, then its table and its charts."""

    title: str
    text: str = ""
    table: Table | None = None
    charts: tuple[Chart, ...] = ()


def write_study(
    page: Path,
    pictures: Path,
    title: str,
    about: str,
    sections: Sequence[Section],
    kind: str = "study",
) -> None:
    """Write `page`, and all charts as PNG and SVG to the folder `pictures`. Raises ResourceError.

    `kind`: what the page calls itself.
    """
    shown = []
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        for section in sections:
            drawn = [chart for chart in section.charts if not chart.empty]
            for chart in drawn:
                charts.save(chart, pictures)
            svgs = [(chart, label_svg(charts.svg(chart), chart.title)) for chart in drawn]
            shown.append((section, svgs))
    except OSError as error:
        raise ResourceError(f"{pictures}: cannot be written: {error.strerror}") from None
    text = fill(
        "study.html",
        title=title,
        about=about,
        kind=kind,
        sections=shown,
        version=__version__,
        now=time.time(),
    )
    write_atomically(page, text.encode("utf-8", errors="replace"))
