"""`hvdtrain tune`: parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hvdtrain.cli.job import AsJson, ConfigFile, Overrides, job, load_on_all

tune_app = typer.Typer(
    help="Find a learning rate, or the largest batch; start it like train.", no_args_is_help=True
)


@tune_app.command("lr")
def tune_lr(
    config: ConfigFile,
    overrides: Overrides = None,
    lowest: Annotated[float, typer.Option("--from", help="Rate of the first step.")] = 1e-4,
    highest: Annotated[float, typer.Option("--to", help="Rate of the last step.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Updates between the two.")] = 200,
    output: Annotated[Path, typer.Option(help="Folder for lr_range.json and lr_range.png.")] = Path(
        "tune-lr"
    ),
    as_json: AsJson = False,
) -> None:
    """LR range test: train with a rate that rises exponentially, and see where the loss falls.

    Rates are those of an update at the plan's first global batch; lr.base is given beside them.
    """
    with job(config, overrides) as comm:
        cfg = load_on_all(comm, config, overrides)
        from hvdtrain.analysis import tune
        from hvdtrain.analysis.lr_range import as_dict

        result = tune.tune_lr(cfg, comm, lowest=lowest, highest=highest, steps=steps, output=output)
        if comm.rank == 0:
            found = as_dict(result)
            typer.echo(json.dumps(found) if as_json else _lr_text(found, output))


@tune_app.command("batch")
def tune_batch(
    config: ConfigFile,
    overrides: Overrides = None,
    most: Annotated[int, typer.Option(min=8, help="Largest batch per worker to try.")] = 4096,
    memory_gb: Annotated[
        float | None,
        typer.Option(help="Memory of each rank on a CPU. Default: what is free, shared."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write the config with these batches to a new file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the largest batch per worker that memory holds, for each image size of the plan.

    Batches of noise are tried on every rank, a tenth of the memory left free. What is largest is
    not always fastest: images/s of every trial are shown.
    """
    with job(config, overrides) as comm:
        cfg = load_on_all(comm, config, overrides)
        from hvdtrain.analysis import tune
        from hvdtrain.comm.agreement import together
        from hvdtrain.files import write_atomically

        with together(comm):
            if write is not None and comm.rank == 0:
                tune.require_new(write)
        memory = None if memory_gb is None else memory_gb * 1e9
        trials, num_samples = tune.tune_batch(cfg, comm, most=most, memory_bytes=memory)
        with together(comm):
            text = tune.tuned_config(cfg, trials, num_samples, comm.size)
            if write is not None and comm.rank == 0:
                write_atomically(write, text.encode())
        if comm.rank == 0:
            found = {str(size): [asdict(t) for t in tried] for size, tried in trials.items()}
            typer.echo(json.dumps(found) if as_json else _batch_text(found))


def _lr_text(found: dict[str, Any], output: Path) -> str:
    rows = [("steepest descent", "steepest"), ("minimum / 10", "tenth_of_minimum")]
    lines = [
        f"{name:<17} rate {found[key]:.4g} at global batch {found['global_batch_size']}: "
        f"lr.base {found[f'lr_base_{key}']:.4g}"
        for name, key in rows
    ]
    return "\n".join([*lines, f"plot and figures   {output}/lr_range.png, lr_range.json"])


def _batch_text(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for size, trials in found.items():
        fitted = [t for t in trials if t["images_per_s"] is not None]
        largest = max(t["batch_per_worker"] for t in fitted)
        lines.append(f"{size} px: batch_per_worker {largest}")
        for trial in sorted(trials, key=lambda t: int(t["batch_per_worker"])):
            speed = trial["images_per_s"]
            word = "out of memory" if speed is None else f"{speed:,.0f} images/s alone"
            lines.append(f"  {trial['batch_per_worker']:>6}  {word}")
    return "\n".join(lines)
