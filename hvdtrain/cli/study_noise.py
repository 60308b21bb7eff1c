"""`hvdtrain study noise-scale`: parse, call, print."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hvdtrain.activity import duration
from hvdtrain.cli.job import job
from hvdtrain.cli.study_options import Common, with_common
from hvdtrain.errors import ConfigError
from hvdtrain.paths import run_config
from hvdtrain.streams import print_error_line, say

if TYPE_CHECKING:
    from hvdtrain.analysis.study.noise.answers import Found, Question, Results

Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="CKPT|RUN",
        help="Run directories, of which what they recorded is read, and checkpoints, at which the noise scale is "
        "measured; then settings that replace values of their configs, for example data.train=DIR.",
    ),
]
Images = Annotated[
    int, typer.Option(min=1, help="Number of training images to measure a checkpoint with.")
]
Batch = Annotated[
    int | None,
    typer.Option(min=1, help="Images of one forward pass. Default: those of the run."),
]
Output = Annotated[
    Path | None,
    typer.Option(help="Folder for page, pictures, JSON and CSV. Default: study-noise-scale."),
]


def register(app: typer.Typer) -> None:
    """Add the command to the group."""
    typed = with_common(
        noise_scale, without=("split", "seed", "batch"), paths=Paths, images=Images, output=Output
    )
    app.command("noise-scale")(typed)


def noise_scale(
    common: Common,
    batch: Batch = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="GBIT",
            help="Predict which batch on how many nodes, at these speeds of a node's link in Gbit/s.",
        ),
    ] = None,
    max_nodes: Annotated[int, typer.Option(min=1, help="Most nodes: 1, 2, 4 … up to these.")] = 64,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs (ranks) in each node. Default: those of the run."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="calibration.json of another run or of hvdtrain scaling calibrate. Default: the run's own, or the "
            "steps of a run on one rank."
        ),
    ] = None,
    network: Annotated[Literal["tcp", "rdma"], typer.Option(help="Type of the network.")] = "tcp",
    algorithm: Annotated[
        Literal["flat", "hierarchical"],
        typer.Option(
            help="How gradients are summed: one ring of all ranks, or first within each node."
        ),
    ] = "flat",
    efficiency: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            help="Measured share of the link speed that gradients reach. Default: a range, of tcp 0.35 to 0.7.",
        ),
    ] = None,
    latency_us: Annotated[
        float | None, typer.Option(min=0, help="Measured latency between two nodes in µs.")
    ] = None,
    straggler: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Standard deviation of a rank's step time, divided by its mean. Default: a range, 0.005 to 0.04.",
        ),
    ] = None,
    least_saving: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the time that twice the nodes must save to pay."),
    ] = 0.2,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of a node per hour in dollars.")
    ] = None,
) -> None:
    """Show how large a batch is useful, and which batch on how many nodes.

    By the gradient noise scale: as a run recorded it, or measured at a checkpoint from the gradients of single
    batches, which the ranks share. The trade-off: updates (time) against images (computation).
    """
    from hvdtrain.analysis.study.noise.answers import Question

    question = None
    if link is not None:
        how = (network, algorithm, efficiency, latency_us, straggler, least_saving, calibration)
        question = Question(link, max_nodes, gpus, *how)
    elif given := _needs_link(
        max_nodes=max_nodes != 64, gpus=gpus, price=price, calibration=calibration
    ):
        raise ConfigError(f"{given}: only with --link GBIT, the speed of a node's link")
    _run(common, batch, question, price)


def _needs_link(**given: object) -> str | None:
    """The first option that was given."""
    named = (f"--{name.replace('_', '-')}" for name, value in given.items() if value)
    return next(named, None)


def _run(common: Common, batch: int | None, question: Question | None, price: float | None) -> None:
    paths, settings = common.split_paths()
    config = run_config(paths[0])
    with job(str(config) if config.is_file() else None, settings) as comm:
        from hvdtrain.analysis.study.noise.answers import study_noise_scale
        from hvdtrain.analysis.study.noise.measure import OWN
        from hvdtrain.analysis.study.noise.output import as_dict, write_results
        from hvdtrain.analysis.study.output import check_output
        from hvdtrain.telemetry.reports import json_text

        output = common.output or Path("study-noise-scale")
        if not common.dry_run:
            check_output(output, comm, overwrite=common.overwrite)
        request = common.request()
        request = replace(request, choice=replace(request.choice, batch=batch or OWN))
        results = study_noise_scale(request, comm, question)
        if not common.dry_run:
            write_results(output, comm, results, price)
        if comm.rank > 0:
            return
        for warning in results.warnings:
            print_error_line(f"hvdtrain: warning: {warning}")
        if common.as_json:
            say(json_text(as_dict(results)))
        elif results.seconds is not None:
            ranks = "1 rank" if comm.size == 1 else f"{comm.size} ranks"
            say(f"about {duration(results.seconds)} on {ranks}, by one batch of images")
        else:
            _print(results, price)
            say(f"page, pictures and numbers: {output}/report.html")


def _print(results: Results, price: float | None) -> None:
    from hvdtrain.analysis.study.noise.words import assumptions

    for found in results.found:
        say("\n\n".join([found.name, *_blocks(found, price)]) + "\n")
    say("\n".join(["What this assumes:", *(f"- {line}" for line in assumptions(results))]) + "\n")


def _blocks(found: Found, price: float | None) -> list[str]:
    """Paragraphs and tables."""
    from hvdtrain.analysis.study.noise import words
    from hvdtrain.scaling.tables import table

    blocks = ["\n".join(words.sentences(found))]
    if found.recorded is not None:
        blocks.append(table(*words.parts_table(found)))
    if found.trade_off is not None:
        blocks.append(table(*words.trade_off_table(found.trade_off)))
    if found.answers:
        blocks.append(words.speed(found))
    for answer in found.answers:
        lines = [words.verdict(answer), words.late_ranks(answer)]
        blocks += ["\n".join(lines), table(*words.nodes_table(answer, price))]
    if found.trade_off is not None and not found.answers:
        blocks.append("--link GBIT adds which batch on how many nodes.")
    return blocks
