"""Writes `report.html`: one self-contained page about one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hvdtrain.errors import ResourceError
from hvdtrain.files import write_atomically
from hvdtrain.report import page as report_page
from hvdtrain.report import plots as report_plots
from hvdtrain.report.figures import Prices, RunFigures, run_figures
from hvdtrain.report.run import RunRecord, label_by_path, read_run
from hvdtrain.report.targets import Target

NO_PRICES = Prices()


def write_report(
    run_dirs: Sequence[Path],
    output: Path,
    targets: Sequence[Target] = (),
    prices: Prices = NO_PRICES,
    png: Path | None = None,
) -> list[RunFigures]:
    """Write the page `output`; returns the figures of each run.

    `png` is a folder for every plot as a picture. A directory that is given twice is shown once.
    Raises ResourceError if one is not a run directory or has no events, or if `output` or `png`
    cannot be written.
    """
    distinct: dict[Path, Path] = {}
    for path in run_dirs:
        distinct.setdefault(path.resolve(), path)
    runs = [read_run(path) for path in distinct.values()]
    label_by_path(runs)
    figures = [run_figures(run, list(targets), prices) for run in runs]
    text = report_page.render(runs, figures, list(targets), prices)
    write_atomically(output, text.encode("utf-8", errors="replace"))
    if png is not None:
        _write_pictures(runs, list(targets), png)
    return figures


def _write_pictures(runs: list[RunRecord], targets: list[Target], folder: Path) -> None:
    labels = [run.label for run in runs]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for _title, plots in report_plots.sections(runs, targets):
            for plot in plots:
                report_plots.png(plot, labels, folder / f"{plot.stem}.png")
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written: {error.strerror}") from None
