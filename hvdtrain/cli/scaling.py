"""`hvdtrain scaling`: parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from hvdtrain.cli.job import AsJson, ConfigFile, Overrides, job, load_on_all
from hvdtrain.config.load import load_config

scaling_app = typer.Typer(
    help="What a cluster would do: predict, measure what that needs, compare with measured steps.",
    no_args_is_help=True,
)
Straggler = Annotated[
    float, typer.Option(min=0, help="Standard deviation of a rank's step over its mean.")
]


@scaling_app.command("predict")
def scaling_predict(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[str, typer.Option(help="Numbers of nodes.")] = "1,2,4,8,16,32,64",
    gpus: Annotated[int, typer.Option(min=1, help="Ranks of each node.")] = 8,
    link: Annotated[
        str, typer.Option(help="Speeds of a node's link, Gbit/s in each direction.")
    ] = "10,25,50,100",
    calibration: Annotated[
        Path | None,
        typer.Option(help="calibration.json of a run, or of scaling calibrate."),
    ] = None,
    step_ms: Annotated[
        float | None,
        typer.Option(help="In its place: one step of one GPU alone, at --image-size and --batch."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=8, help="Of --step-ms, pixels.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Of --step-ms, images.")] = None,
    network: Annotated[
        Literal["tcp", "rdma"], typer.Option(help="Which figures stand for the network.")
    ] = "tcp",
    algorithm: Annotated[
        Literal["flat", "hierarchical"], typer.Option(help="How ranks sum: one ring, or by node.")
    ] = "flat",
    efficiency: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Share of the link for gradients, as measured."),
    ] = None,
    latency_us: Annotated[
        float | None, typer.Option(min=0, help="From node to node, as measured.")
    ] = None,
    straggler: Straggler = 0.03,
    target: Annotated[
        float, typer.Option(min=0.01, max=1, help="Efficiency that the advice is for.")
    ] = 0.9,
    price: Annotated[
        float | None, typer.Option(min=0, help="Dollars for one node and hour.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture: PNG, SVG or PDF.")] = None,
    as_json: AsJson = False,
) -> None:
    """Step time, efficiency, hours and dollars of CONFIG's plan for clusters of any size.

    The advice below the tables is for the largest number of nodes, at every link.
    Exit codes: 2 wrong option or config; 6 a file that cannot be read or written.
    """
    from hvdtrain.plan.images import num_images
    from hvdtrain.scaling.inputs import GivenSpeed, clusters, worker_speed
    from hvdtrain.scaling.predict import advise_all, predict_all
    from hvdtrain.scaling.tables import prediction_dict, prediction_text

    cfg = load_config(config, overrides)
    speed = worker_speed(cfg, GivenSpeed(calibration, step_ms, image_size, batch))
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
        num_samples=num_images(cfg),
        price_per_node_hour=price,
        sigma=straggler,
    )
    advice = advise_all(cfg, speed.profile, points, target=target, sigma=straggler)
    about = f"one worker: {speed.about}"
    if plot is not None:
        from hvdtrain.scaling.plot import plot as draw

        draw(points, plot, f"{cfg.name}: predicted, {gpus} per node, {network}")
    if as_json:
        prediction = {"about": about, **prediction_dict(points, advice), "without_plan": without}
        typer.echo(json.dumps(prediction))
    else:
        typer.echo(f"{about}\n\n{prediction_text(points, advice, target)}")
        for line in without:
            typer.echo(f"left out: {line}")


@scaling_app.command("calibrate")
def scaling_calibrate(
    config: ConfigFile,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("calibration.json"),
) -> None:
    """Measure one worker's speed at every image size of the plan, and its gradients.

    Needs no images. Start it alone, or with as many ranks as a node has: then what they share of
    the node is in it.
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
            typer.echo(f"{calibration_text(content)}; {output}")


@scaling_app.command("compare")
def scaling_compare(
    measured: Annotated[Path, typer.Argument(metavar="FILE", help="Measured steps, JSON.")],
    straggler: Straggler = 0.0,
    as_json: AsJson = False,
) -> None:
    """Predict steps that were measured on a cluster, and print both.

    docs/explanation/scaling.md describes the file format. Exit code 6: not such a file.
    """
    from hvdtrain.scaling.compare import compare, read_measured
    from hvdtrain.scaling.tables import comparison_text

    comparisons = [compare(point, straggler) for point in read_measured(measured)]
    if as_json:
        typer.echo(json.dumps([each.as_dict() for each in comparisons]))
    else:
        typer.echo(comparison_text(comparisons))


@scaling_app.command("published")
def scaling_published() -> None:
    """Published efficiencies, and what the model says of them, as Markdown."""
    from hvdtrain.scaling.published import published, traffic_per_step
    from hvdtrain.scaling.tables import published_text

    predicted, logged = traffic_per_step()
    typer.echo(published_text(published()))
    typer.echo(f"\nDIUx 4×8, MB that a host sends in a step: {logged:g} logged, {predicted:.1f}")
