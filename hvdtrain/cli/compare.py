"""`hvdtrain compare`: parse, call, print."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from hvdtrain.cli.job import AsJson
from hvdtrain.cli.progress import doing


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories, two or more.")
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIGURE",
            help="Figure to test for significance: best_loss, last_loss, best_top1, last_top1, "
            "seconds_per_epoch, …; can be repeated. Default: these first four.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="Show what this result took: top1=0.93, top5=… or loss=…; can be repeated.",
        ),
    ] = None,
    group_by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="Runs with the same value of this field are a group, whatever else differs, for example "
            "comm.compression or ranks; can be repeated. Default: all fields but seed, name and "
            "those of machines, and the number of ranks.",
        ),
    ] = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Count results of unfinished runs as they stand.")
    ] = False,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the page, pictures, CSV and JSON.")
    ] = Path("compare"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Use the folder although it has files.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare runs: what differs, which is better, is it chance?

    Runs that differ in their seeds only are a group, with mean and standard deviation. Writes a page
    with curves, and prints the tables.
    """
    from hvdtrain.analysis.compare.comparison import Asked
    from hvdtrain.analysis.compare.comparison import compare as compare_runs
    from hvdtrain.analysis.compare.output import write_comparison
    from hvdtrain.analysis.compare.text import as_text
    from hvdtrain.analysis.output_folder import require_free
    from hvdtrain.report.targets import parse_target
    from hvdtrain.telemetry.reports import json_text

    require_free(output, overwrite=overwrite)
    targets = [parse_target(text) for text in target or []]
    with doing("comparing the runs"):
        asked = Asked(runs, metric or (), targets, group_by or (), unfinished)
        found = compare_runs(asked)
        page = write_comparison(found, output)
    if as_json:
        typer.echo(json_text({"report": str(page), **found.as_dict()}))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        typer.echo(f"{as_text(found, width)}\n\n{page}")
