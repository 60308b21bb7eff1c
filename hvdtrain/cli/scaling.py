"""`hvdtrain scaling`: parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from hvdtrain.cli.job import AsJson, ConfigFile, Overrides, job, load_on_all
from hvdtrain.cli.progress import doing
from hvdtrain.config.load import load_config
from hvdtrain.streams import say

scaling_app = typer.Typer(
    help="Predict training time, efficiency and cost on a cluster.",
    no_args_is_help=True,
)
_STRAGGLER = "Standard deviation of a rank's step time, divided by its mean."


@scaling_app.command("predict")
def scaling_predict(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[
        str, typer.Option(help="Numbers of nodes, separated by commas.")
    ] = "1,2,4,8,16,32,64",
    gpus: Annotated[int, typer.Option(min=1, help="GPUs (ranks) in each node.")] = 8,
    link: Annotated[
        str, typer.Option(help="Speeds of a node's network link in Gbit/s, in each direction.")
    ] = "10,25,50,100",
    calibration: Annotated[
        Path | None,
        typer.Option(help="calibration.json of a run or of hvdtrain scaling calibrate."),
    ] = None,
    step_ms: Annotated[
        float | None,
        typer.Option(help="Instead of --calibration: time of one step on a single GPU."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Image size of --step-ms in pixels.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Batch size of --step-ms in images.")
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
        float | None, typer.Option(min=0, help=f"{_STRAGGLER} Default: a range, 0.005 to 0.04.")
    ] = None,
    target: Annotated[
        float, typer.Option(min=0.01, max=1, help="Efficiency that the advice aims at.")
    ] = 0.9,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of a node per hour in dollars.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a plot to this file: PNG, SVG or PDF.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict step time, efficiency, hours and cost.

    For the plan of CONFIG on every number of nodes and every link speed, each figure from the lowest to the
    highest that the assumptions allow. The advice below the tables is for the largest number of nodes: enough at
    best, and enough in any case.
    """
    from hvdtrain.plan.images import num_images
    from hvdtrain.scaling.inputs import GivenSpeed, clusters, worker_speed
    from hvdtrain.scaling.overlap import sigmas
    from hvdtrain.scaling.predict import advise_all, predict_all
    from hvdtrain.scaling.tables import prediction_dict, prediction_text

    cfg, sigma = load_config(config, overrides), sigmas(straggler)
    speed = worker_speed(cfg, GivenSpeed(calibration, step_ms, image_size, batch))
    with doing("listing the images"):
        images = num_images(cfg)
    points, without = predict_all(
        cfg,
        speed.profile,
        clusters(
            nodes,
            gpus,
            link,
            network=network,
            algorithm=algorithm,
            efficiency=efficiency,
            latency_us=latency_us,
        ),
        num_samples=images,
        price_per_node_hour=price,
        sigma=sigma,
    )
    advice = advise_all(cfg, speed.profile, points, target=target, sigma=sigma)
    about = f"one worker: {speed.about}"
    if plot is not None:
        from hvdtrain.scaling.plot import plot as draw

        draw(points, plot, f"{cfg.name}: predicted, {gpus} per node, {network}")
    if as_json:
        found = prediction_dict(points, advice, target, sigma)
        typer.echo(json.dumps({"about": about, **found, "without_plan": without}))
    else:
        typer.echo(f"{about}\n\n{prediction_text(points, advice, target, sigma)}")
        for line in without:
            typer.echo(f"left out: {line}")


@scaling_app.command("calibrate")
def scaling_calibrate(
    config: ConfigFile,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("calibration.json"),
) -> None:
    """Measure the speed of a worker for scaling predict.

    At every image size and batch of the plan, with random images instead of a dataset. Start it
    with as many ranks as a node will have: they share its memory and buses, and that slows them
    down. Without a launcher it measures a single worker.
    """
    with job(config, overrides) as comm:
        cfg = load_on_all(comm, config, overrides)
        from hvdtrain.analysis.calibration import (
            calibrate_plan,
            calibration_text,
            write_calibration,
        )

        content = calibrate_plan(cfg, comm)
        write_calibration(content, output, comm)
        if comm.rank == 0:
            say(f"{calibration_text(content)}; {output}")


@scaling_app.command("compare")
def scaling_compare(
    measured: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Measured steps (JSON, see docs/explanation/scaling.md)."
        ),
    ],
    straggler: Annotated[float, typer.Option(min=0, help=_STRAGGLER)] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Compare measured steps with the prediction."""
    from hvdtrain.scaling.compare import compare, read_measured
    from hvdtrain.scaling.tables import comparison_text

    comparisons = [compare(point, straggler) for point in read_measured(measured)]
    if as_json:
        typer.echo(json.dumps([each.as_dict() for each in comparisons]))
    else:
        typer.echo(comparison_text(comparisons))


@scaling_app.command("published")
def scaling_published() -> None:
    """Compare published efficiencies and step times with the prediction.

    Prints Markdown tables.
    """
    from hvdtrain.scaling.published_text import published_text

    typer.echo(published_text())
