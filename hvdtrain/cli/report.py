"""`hvdtrain report`: parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hvdtrain.cli.progress import doing

AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as a JSON object.")]


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="Show when this result was reached: top1=0.93, top5=… or loss=…; can be repeated.",
        ),
    ] = None,
    price_per_node_hour: Annotated[
        float | None, typer.Option(min=0, help="On-demand price of a node per hour in dollars.")
    ] = None,
    spot_price: Annotated[
        float | None, typer.Option(min=0, help="Spot price of a node per hour in dollars.")
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Number of nodes. Default: the number of hosts of the run."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write. Default: report.html in the run directory, or here for several runs."
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write every plot as a PNG file to this folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an HTML page about one or several runs.

    Accuracy, time, cost, speed and plan, of finished and unfinished runs.
    """
    from hvdtrain.paths import RunPaths
    from hvdtrain.report.figures import Prices
    from hvdtrain.report.targets import parse_target
    from hvdtrain.report.text import lines
    from hvdtrain.report.write import write_report

    targets = [parse_target(text) for text in target or []]
    page = output or (RunPaths(runs[0]).report if len(runs) == 1 else Path("report.html"))
    prices = Prices(price_per_node_hour, spot_price, nodes)
    with doing("writing the report"):
        figures = write_report(runs, page, targets, prices, png)
    if as_json:
        typer.echo(json.dumps({"report": str(page), "runs": [run.as_dict() for run in figures]}))
    else:
        typer.echo(f"{lines(figures)}\n{page}")
