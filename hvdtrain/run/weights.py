"""The start of a run that is kept, and what `metrics.weights` reports of each epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from hvdtrain.checkpoint_files import MEASURES_FILE, MODEL_FILE, read_meta, verify
from hvdtrain.comm.agreement import together
from hvdtrain.engine.checkpoint import checkpoint_name
from hvdtrain.engine.weight_meter import WeightMeter
from hvdtrain.errors import CheckpointError, ConfigError
from hvdtrain.plan.epochs import Position
from hvdtrain.run.parts import Run
from hvdtrain.telemetry.reports import Note, Weights


def keep_start(run: Run, loaded: Path | None) -> None:
    """Save the weights of a run that begins, if they are to be kept, and begin or go on to measure.

    `loaded`: the checkpoint that rank 0 goes on from. Every rank must call it. Raises ConfigError if
    distances from the start are to be measured, and it was not kept.
    """
    cfg, progress = run.cfg, run.state.progress
    if not (cfg.checkpoint.keep_start or cfg.metrics.weights):
        return
    start = run.paths.checkpoints / checkpoint_name(Position())
    if progress.step == 0 and progress.position == Position():
        there = run.comm.gather_text("there" if start.is_dir() else "")[0]
        if not there:
            run.snapshots.save(wait=True)
    with together(run.comm):
        if run.state.weights is not None:
            _begin(run, run.state.weights, start, loaded)


def report_weights(run: Run) -> None:
    """Report how the weights moved in the epoch that has ended, and begin the next one."""
    meter, progress = run.state.weights, run.state.progress
    if meter is None or meter.epoch >= progress.position.epoch:
        return
    if meter.whole:
        measures: dict[str, Any] = meter.measures()
        run.sinks.write(Weights(float(meter.epoch + 1), progress.step, **measures))
    else:
        run.sinks.write(
            Note(
                f"metrics.weights: epoch {meter.epoch + 1} is left out: it was on for a part of it"
            )
        )
    meter.begin(progress.position.epoch)


def _begin(run: Run, meter: WeightMeter, start: Path, loaded: Path | None) -> None:
    if not start.is_dir():
        raise ConfigError(
            f"metrics.weights: {run.paths.root} has no {start.name}: its start was not kept: leave "
            "metrics.weights out, or begin a new run with it"
        )
    verify(start)
    at = run.state.progress.position
    try:
        meter.set_start(_tensors(start / MODEL_FILE))
        if loaded is not None and MEASURES_FILE in read_meta(loaded)["sha256"]:
            meter.load(_tensors(loaded / MEASURES_FILE))
        else:
            meter.begin(at.epoch, whole=at.sample == 0)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{start.parent}: made by another model: {error}") from None
    report_weights(run)  # of an epoch after which the attempt ended at once


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file}: not written by hvdtrain: {error}") from None
