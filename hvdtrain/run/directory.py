"""The directory a run writes to: a new one, a named one, or that of the run it resumes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.load import load_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.checkpoint import list_checkpoints
from hvdtrain.errors import CheckpointError, ResourceError
from hvdtrain.paths import RunPaths


def run_directory(
    cfg: Config, comm: Comm, resume: str, run_dir: Path | None
) -> tuple[RunPaths, bool]:
    """The run's directory, chosen by rank 0, and whether it must hold a checkpoint.

    Nothing is created yet. Raises ResourceError if it could not be.
    """
    choice = ""
    with together(comm):
        if comm.rank == 0:
            try:
                root, must = _choose_directory(cfg, resume, run_dir)
                _require_writable(Path(root))
            except OSError as error:
                place = error.filename or cfg.output
                raise ResourceError(f"output: {place}: {error.strerror}") from None
            choice = json.dumps([root, must])
    root, must = json.loads(comm.gather_text(choice)[0])
    return RunPaths(Path(root)), must


def _require_writable(root: Path) -> None:
    """Look whether `root` can be created, before the datasets are listed. Raises ResourceError."""
    place = root.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        reason = f"{place} is no folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = f"{place} is not writable"
    else:
        return
    raise ResourceError(
        f"output: cannot write the run directory {root}: {reason}; choose another with output=DIR"
    )


@contextlib.contextmanager
def discarded_if_unused(paths: RunPaths, comm: Comm) -> Iterator[None]:
    """After an error, remove the directory if this attempt made it and wrote no checkpoint to it."""
    made = comm.rank == 0 and not paths.root.exists()
    try:
        yield
    except BaseException:
        if made and not list_checkpoints(paths.checkpoints):
            shutil.rmtree(paths.root, ignore_errors=True)
        raise


def _choose_directory(cfg: Config, resume: str, run_dir: Path | None) -> tuple[str, bool]:
    if resume not in ("never", "auto"):
        if not Path(resume).is_dir():
            raise CheckpointError(f"--resume {resume}: no such run directory")
        return resume, True
    if run_dir is not None:
        paths = RunPaths(run_dir)
        if resume == "never" and list_checkpoints(paths.checkpoints):
            raise CheckpointError(
                f"--run-dir {run_dir}: holds a run already: add --resume auto to go on with it"
            )
        return str(run_dir), False
    if resume == "auto":
        for root in sorted(Path(cfg.output).glob(f"{cfg.name}-[0-9]*-[0-9]*/"), reverse=True):
            paths = RunPaths(root)
            unfinished = not paths.summary.exists() and list_checkpoints(paths.checkpoints)
            if unfinished and _training_part(load_config(paths.config)) == _training_part(cfg):
                return str(root), True
    stamp = time.strftime("%Y%m%d-%H%M%S")
    root = Path(cfg.output) / f"{cfg.name}-{stamp}"
    number = 1
    while root.exists():
        number += 1
        root = Path(cfg.output) / f"{cfg.name}-{stamp}-{number}"
    return str(root), False


def _training_part(cfg: Config) -> dict[str, Any]:
    """The sections of the config that the result depends on."""
    return cfg.model_dump(
        exclude={"output": True, "metrics": True, "checkpoint": True, "comm": True}
    )
