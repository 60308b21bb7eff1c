"""`hvdtrain scaling`: parse, call, print."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hvdtrain.cli.job import AsJson, ConfigFile, Overrides, job, load_on_all
from hvdtrain.config.load import load_config
from hvdtrain.config.schema import GROUP_MB, Config
from hvdtrain.errors import ConfigError

if TYPE_CHECKING:
    from hvdtrain.scaling.network import Network
    from hvdtrain.scaling.predict import ProfileOf

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
    from hvdtrain.scaling import predict as prediction
    from hvdtrain.scaling.network import NETWORKS, Cluster
    from hvdtrain.scaling.tables import prediction_dict, prediction_text

    cfg = load_config(config, overrides)
    samples = _samples(cfg)
    profile_of, about = _profiles(cfg, calibration, step_ms, image_size, batch)
    base = _network(NETWORKS[network], efficiency, latency_us)
    sizes = sorted(int(n) for n in prediction.parse_numbers(nodes, "--nodes", whole=True))
    speeds = sorted(prediction.parse_numbers(link, "--link", whole=False))
    points, without = prediction.predict_all(
        cfg,
        profile_of,
        [
            Cluster(hosts, gpus, replace(base, link_gbit=gbit), algorithm)
            for hosts in sizes
            for gbit in speeds
        ],
        num_samples=samples,
        price_per_node_hour=price,
        sigma=straggler,
    )
    advice = prediction.advise_all(cfg, profile_of, points, target=target, sigma=straggler)
    if plot is not None:
        from hvdtrain.scaling.plot import plot as draw

        draw(points, plot, f"{cfg.name}: predicted, {gpus} per node, {network}")
    if as_json:
        found = {"about": about, **prediction_dict(points, advice), "without_plan": without}
        typer.echo(json.dumps(found))
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
        from hvdtrain.analysis.calibration import calibrate_plan
        from hvdtrain.comm.agreement import together
        from hvdtrain.files import write_atomically

        content = calibrate_plan(cfg, comm)
        with together(comm):
            if comm.rank == 0:
                write_atomically(output, json.dumps(content, indent=1).encode())
                for entry in content["entries"]:
                    typer.echo(
                        "{image_size} px, batch {batch}: {images_per_second:,.1f} images/s, "
                        "backward {backward_s:.4f} s".format(**entry)
                    )
                typer.echo(f"{len(content['groups'])} groups of gradients; {output}")


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

    found = [compare(point, straggler) for point in read_measured(measured)]
    if as_json:
        typer.echo(
            json.dumps(
                [
                    {**c.measured.model_dump(), "predicted_s": c.predicted_s, "error": c.error}
                    for c in found
                ]
            )
        )
    else:
        typer.echo(comparison_text(found))


@scaling_app.command("published")
def scaling_published() -> None:
    """Published efficiencies, and what the model says of them, as Markdown."""
    from hvdtrain.scaling.published import published, traffic_per_step
    from hvdtrain.scaling.tables import published_text

    predicted, logged = traffic_per_step()
    typer.echo(published_text(published()))
    typer.echo(f"\nDIUx 4×8, MB that a host sends in a step: {logged:g} logged, {predicted:.1f}")


def _profiles(
    cfg: Config,
    calibration: Path | None,
    step_ms: float | None,
    image_size: int | None,
    batch: int | None,
) -> tuple[ProfileOf, str]:
    """One worker's profile at an image size and batch, and where it is from."""
    from hvdtrain.scaling.profile import Calibration, hand_given, read_calibration

    group_bytes = (cfg.comm.group_mb or GROUP_MB) * 2**20
    classes = cfg.model.num_classes or 1000
    by_hand = (step_ms, image_size, batch)
    if calibration is not None:
        if any(value is not None for value in by_hand):
            raise ConfigError("--calibration and --step-ms: give one of them")
        found = read_calibration(
            calibration,
            cfg.model.name,
            group_bytes=group_bytes,
            classes=classes,
            accumulate=cfg.train.accumulate,
        )
    elif step_ms is None or image_size is None or batch is None:
        raise ConfigError(
            "speed of one GPU alone: give --calibration FILE (a run writes calibration.json, so "
            "does hvdtrain scaling calibrate), or --step-ms, --image-size and --batch together"
        )
    elif step_ms <= 0:
        raise ConfigError(f"--step-ms {step_ms:g}: expected a time above 0")
    else:
        profile = hand_given(
            cfg.model.name,
            image_size=image_size,
            batch=batch,
            step_s=step_ms / 1000,
            group_bytes=group_bytes,
            classes=classes,
        )
        told = f"{cfg.model.name}, {step_ms:g} ms a step of {batch} at {image_size} px"
        found = Calibration([profile], told)
    return found.profile, f"one worker: {found.about}"


def _network(network: Network, efficiency: float | None, latency_us: float | None) -> Network:
    if efficiency is not None:  # a measured share holds for the link at hand, whatever its speed
        network = replace(network, efficiency=efficiency, most_gbit=float("inf"))
    if latency_us is not None:
        network = replace(network, latency_s=latency_us / 1e6)
    return network


def _samples(cfg: Config) -> int | None:
    """Number of training images, where the config does not say it and the data is there."""
    if cfg.data.train_size is not None or cfg.data.train is None:
        return cfg.data.train_size
    from pipelines.sources import open_source

    return len(open_source(cfg.data.train, "data.train"))
