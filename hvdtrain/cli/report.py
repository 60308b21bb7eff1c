"""`hvdtrain report`: parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")]


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="Result to be reached: top1=0.93, top5=…, loss=…; may be given several times.",
        ),
    ] = None,
    price_per_node_hour: Annotated[
        float | None, typer.Option(min=0, help="Dollars for one node and hour, on demand.")
    ] = None,
    spot_price: Annotated[
        float | None, typer.Option(min=0, help="Dollars for one node and hour, on spot.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Number of nodes, in place of what the run tells.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The page. Default: report.html in the run directory, or here."),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every plot as a PNG, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about runs, finished or not: accuracy, time, cost, speed, plan.

    Exit codes: 2 wrong target or option; 6 not a run directory, no events, or not writable.
    """
    from hvdtrain.paths import RunPaths
    from hvdtrain.report.figures import Prices
    from hvdtrain.report.targets import parse_target
    from hvdtrain.report.text import lines
    from hvdtrain.report.write import write_report

    targets = [parse_target(text) for text in target or []]
    page = output or (RunPaths(runs[0]).report if len(runs) == 1 else Path("report.html"))
    prices = Prices(price_per_node_hour, spot_price, nodes)
    figures = write_report(runs, page, targets, prices, png)
    if as_json:
        typer.echo(json.dumps({"report": str(page), "runs": [run.as_dict() for run in figures]}))
    else:
        typer.echo(f"{lines(figures)}\n{page}")
