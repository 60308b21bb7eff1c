"""The state that a run starts from: that of its newest intact checkpoint, or `model.weights`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from hvdtrain.checkpoint_files import read_meta
from hvdtrain.comm.agreement import together
from hvdtrain.engine.build import checkpoint_labels
from hvdtrain.engine.checkpoint import (
    list_checkpoints,
    load_buffers,
    load_checkpoint,
    verify,
)
from hvdtrain.engine.checkpoint_errors import (
    SavedErrors,
    dropped_errors,
    load_factors,
    share_errors,
)
from hvdtrain.engine.evaluate import rank_buffers, set_buffers
from hvdtrain.engine.noise_scale import NoiseScale
from hvdtrain.engine.progress import Progress
from hvdtrain.engine.weights_source import start_from
from hvdtrain.errors import CheckpointError
from hvdtrain.files import move_aside
from hvdtrain.paths import RunPaths
from hvdtrain.plan.epochs import Position
from hvdtrain.run.changes import accepted_before, identity
from hvdtrain.run.guard.divergence import shared_tensors
from hvdtrain.run.parts import Run
from hvdtrain.telemetry.reports import Note

STRICT = ("model", "classes", "train_images")
"""Labels of a checkpoint that must fit also if other settings were accepted."""
ORIGIN = "weights_from"
"""Key, in a checkpoint and in `summary.json`, of what is recorded of `model.weights`."""


def restore(
    run: Run, *, must: bool, verb: str = "resumed from", before: int | None = None
) -> Path | None:
    """Load the newest intact checkpoint of the run on rank 0 and broadcast the state; returns its path on
    rank 0.

    Without a checkpoint the run starts from `model.weights`, if given. Only rank 0 needs to see the
    files. On as many ranks as wrote the checkpoint, each gets its own batch-norm statistics and errors of
    PowerSGD, on others their mean and an equal share. Raises CheckpointError if `must` is set and no
    checkpoint is usable, or if the checkpoint belongs to another model. `verb` begins the note on it; the
    report takes "resumed from" for the begin of another attempt. `before`: see `checkpoints_before`.
    """
    state, comm = run.state, run.comm
    statistics: torch.Tensor | None = None
    loaded: tuple[Path, dict[str, Any]] | None = None
    errors: SavedErrors | None = None
    with together(comm):
        if comm.rank == 0:
            loaded = _load_newest(run, verb, before)
            statistics = load_buffers(state, *loaded) if loaded else None
            errors = load_factors(state, *loaded) if loaded else None
            if loaded and (text := dropped_errors(state, *loaded)):
                run.sinks.write(Note(f"warning: {text}"))
            if must and not loaded:
                raise CheckpointError(
                    f"{run.paths.checkpoints}: no usable checkpoint to resume from"
                )
            if not loaded and run.cfg.model.weights is not None:
                notes, origin = start_from(run.cfg, state.model, run.loaders.classes)
                run.snapshots.about[ORIGIN] = origin
                for text in notes:
                    run.sinks.write(Note(text))
            elif loaded and ORIGIN in loaded[1]:
                run.snapshots.about[ORIGIN] = loaded[1][ORIGIN]
    header = {
        "progress": state.progress.as_dict(),
        "scaler": state.scaler.state_dict(),
        "noise_scale": state.noise.scale.state(),
        "statistics": statistics is not None,
        ORIGIN: run.snapshots.about.get(ORIGIN),
    }
    header = json.loads(comm.gather_text(json.dumps(header))[0])
    state.progress = Progress.from_dict(header["progress"])
    if header[ORIGIN]:
        run.snapshots.about[ORIGIN] = header[ORIGIN]
    state.noise.scale = NoiseScale(**header["noise_scale"])
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(header["scaler"])
    comm.broadcast_(shared_tensors(state))
    share_errors(state, errors)
    if header["statistics"]:
        buffers = rank_buffers(state)
        values = torch.empty(comm.size, sum(buffer.numel() for buffer in buffers))
        values = values if statistics is None else statistics
        comm.broadcast_({"statistics": values})
        set_buffers(buffers, values[comm.rank].to(state.settings.device))
    if state.lookahead is not None and state.progress.step == 0:
        state.lookahead.begin()  # from `model.weights`, too
    return loaded[0] if loaded else None


def checkpoints_before(paths: RunPaths, step: int | None) -> list[Path]:
    """Complete checkpoints from before update `step` (None: all), the last written first. One whose
    metadata are damaged counts: the loader says so."""
    found = list_checkpoints(paths.checkpoints)
    return found if step is None else [path for path in found if _step_of(path) < step]


def _step_of(path: Path) -> int:
    try:
        return int(read_meta(path)["step"])
    except CheckpointError:
        return 0


def _load_newest(run: Run, verb: str, before: int | None) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that was loaded and its metadata; None if there is none."""
    damaged: list[Path] = []
    found = checkpoints_before(run.paths, before)
    for number, path in enumerate(found, 1):
        try:
            meta = verify(path)
        except CheckpointError as error:
            run.sinks.write(Note(f"warning: {error}"))
            damaged.append(path)
            continue
        labels = checkpoint_labels(run.cfg, run.loaders, run.state.teacher)
        # Shown and accepted, now or in an attempt that ended before its first checkpoint.
        if run.data.changed or run.data.accepted:
            del labels["train_images"]
        if identity(run.changes) or accepted_before(run.paths):
            labels = {key: labels[key] for key in labels.keys() & STRICT}
        load_checkpoint(run.state, path, meta, labels)
        at = run.state.progress.position
        if at.sample >= run.loaders.num_train:  # fewer images than before
            at = Position(at.epoch + 1, 0)
            run.state.progress = run.state.progress.at(at)
        run.sinks.write(Note(f"{verb} {path}: epoch {at.epoch}, image {at.sample:,}"))
        _set_aside(run, damaged + _without_metadata(run, found[number:]))
        return path, meta
    return None


def _without_metadata(run: Run, paths: list[Path]) -> list[Path]:
    """Those whose place in the order is not known, so that each may be the newest; warns of them."""
    damaged = []
    for path in paths:
        try:
            read_meta(path)
        except CheckpointError as error:
            run.sinks.write(Note(f"warning: {error}"))
            damaged.append(path)
    return damaged


def _set_aside(run: Run, damaged: list[Path]) -> None:
    """Let damaged checkpoints never count as newest; they stay if there is no intact one."""
    for path in damaged:
        try:
            target = move_aside(path)
        except OSError as error:
            text = f"warning: {path}: damaged, and cannot be renamed: {error.strerror}"
        else:
            text = f"{path} is now {target.name}; delete it if you have no use for it"
        run.sinks.write(Note(text))
