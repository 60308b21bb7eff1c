"""`hvdtrain tune`: parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hvdtrain.cli.job import AsJson, ConfigFile, Overrides, job, load_on_all
from hvdtrain.streams import say

if TYPE_CHECKING:
    from hvdtrain.analysis.largest_batch import Trial

tune_app = typer.Typer(help="Find a learning rate, or the largest batch.", no_args_is_help=True)


@tune_app.command("lr")
def tune_lr(
    config: ConfigFile,
    overrides: Overrides = None,
    lowest: Annotated[
        float, typer.Option("--from", help="Learning rate of the first step.")
    ] = 1e-4,
    highest: Annotated[float, typer.Option("--to", help="Learning rate of the last step.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 200,
    output: Annotated[Path, typer.Option(help="Folder for lr_range.json and lr_range.png.")] = Path(
        "tune-lr"
    ),
    as_json: AsJson = False,
) -> None:
    """Find a learning rate by an LR range test.

    Trains a few steps with a rate that rises exponentially, and shows where the loss falls fastest.
    Rates belong to the global batch of the first phase; the matching lr.base is printed as well.
    Start it like train: without a launcher, or with as many ranks as the run will have.
    """
    with job(config, overrides) as comm:
        cfg = load_on_all(comm, config, overrides)
        from hvdtrain.analysis.lr_range import as_dict
        from hvdtrain.analysis.tune import tune_lr as run_test

        result = run_test(cfg, comm, lowest=lowest, highest=highest, steps=steps, output=output)
        if comm.rank == 0:
            figures = as_dict(result)
            say(json.dumps(figures) if as_json else _lr_text(figures, output))


@tune_app.command("batch")
def tune_batch(
    config: ConfigFile,
    overrides: Overrides = None,
    most: Annotated[int, typer.Option(min=8, help="Largest batch per worker to try.")] = 4096,
    memory_gb: Annotated[
        float | None,
        typer.Option(
            help="Memory of each rank on CPUs, in GB. Default: its share of the free memory."
        ),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write a new config file with the batches that were found.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the largest batch per worker that fits in memory.

    For each image size of the plan, batches of random images are tried on every rank; a tenth of
    the memory stays free. The largest batch is not always the fastest, so images/s of all trials
    are shown. Start it like train: without a launcher, or with as many ranks as the run will have.
    """
    with job(config, overrides) as comm:
        cfg = load_on_all(comm, config, overrides)
        from hvdtrain.analysis.tune import tune_batch as run_trials

        memory = None if memory_gb is None else memory_gb * 1e9
        trials = run_trials(cfg, comm, most=most, memory_bytes=memory, write=write)
        if comm.rank == 0:
            as_dicts = {size: [asdict(trial) for trial in tried] for size, tried in trials.items()}
            say(json.dumps(as_dicts) if as_json else _batch_text(trials))


def _lr_text(figures: dict[str, Any], output: Path) -> str:
    rows = [("steepest descent", "steepest"), ("minimum / 10", "tenth_of_minimum")]
    lines = [
        f"{name:<17} rate {figures[key]:.4g} at global batch {figures['global_batch_size']}: "
        f"lr.base {figures[f'lr_base_{key}']:.4g}"
        for name, key in rows
    ]
    return "\n".join([*lines, f"plot and figures   {output}/lr_range.png, lr_range.json"])


def _batch_text(trials: dict[int, list[Trial]]) -> str:
    from hvdtrain.analysis.largest_batch import best

    lines = []
    for size, tried in trials.items():
        lines.append(f"{size} px: batch_per_worker {best(tried)}")
        for trial in sorted(tried, key=lambda each: each.batch_per_worker):
            speed = trial.images_per_s
            result = "out of memory" if speed is None else f"{speed:,.0f} images/s per worker"
            lines.append(f"  {trial.batch_per_worker:>6}  {result}")
    return "\n".join(lines)
