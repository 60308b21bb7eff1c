"""The directory a run writes to: a new one, a named one, or that of the run it resumes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.load import load_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.checkpoint import list_checkpoints
from hvdtrain.errors import CheckpointError, HvdtrainError, ResourceError
from hvdtrain.paths import RunPaths
from hvdtrain.run.lock import RunLock


@dataclass
class Directory:
    """The directory of an attempt, on one rank."""

    paths: RunPaths
    must_resume: bool
    """It must hold a usable checkpoint."""
    notes: list[str]
    """What there is to tell about the choice."""
    made: bool = False
    """This rank has made the directory."""
    lock: RunLock | None = None
    """On rank 0, once the directory is there."""


def run_directory(cfg: Config, comm: Comm, resume: str, run_dir: Path | None) -> Directory:
    """The run's directory, chosen, made and locked by rank 0.

    Raises ResourceError if it cannot be made, or if another job uses it.
    """
    own = Directory(RunPaths(Path()), must_resume=False, notes=[])
    with together(comm):
        if comm.rank == 0:
            try:
                own = _choose_directory(cfg, resume, run_dir)
                own.lock = RunLock(own.paths.root)
            except OSError as error:
                if own.made:
                    own.paths.root.rmdir()
                place = error.filename or cfg.output
                raise ResourceError(f"output: {place}: {error.strerror}") from None
    chosen = comm.gather_text(json.dumps([str(own.paths.root), own.must_resume, own.notes]))[0]
    root, must_resume, notes = json.loads(chosen)
    return Directory(RunPaths(Path(root)), must_resume, notes, own.made, own.lock)


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
def discarded_if_unused(directory: Directory) -> Iterator[None]:
    """After an error, remove the directory if this attempt made it and wrote no checkpoint to it."""
    try:
        yield
    except BaseException:
        if directory.made and not list_checkpoints(directory.paths.checkpoints):
            shutil.rmtree(directory.paths.root, ignore_errors=True)
        if directory.lock is not None:
            directory.lock.release()
        raise


def _choose_directory(cfg: Config, resume: str, run_dir: Path | None) -> Directory:
    if resume not in ("never", "auto"):
        if not Path(resume).is_dir():
            raise CheckpointError(f"--resume {resume}: no such run directory")
        return Directory(RunPaths(Path(resume)), must_resume=True, notes=[])
    if run_dir is not None:
        paths = RunPaths(run_dir)
        begun = bool(list_checkpoints(paths.checkpoints))
        if resume == "never" and begun:
            raise CheckpointError(
                f"--run-dir {run_dir}: holds a run already: add --resume auto to go on with it"
            )
        _require_writable(run_dir)
        return Directory(paths, must_resume=begun, notes=[], made=_make(run_dir))
    notes: list[str] = []
    if resume == "auto" and (root := _unfinished(cfg, notes)) is not None:
        return Directory(RunPaths(root), must_resume=True, notes=notes)
    name = f"{cfg.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    root = Path(cfg.output) / name
    _require_writable(root)
    number = 1
    while not _make(root):
        number += 1
        root = Path(cfg.output) / f"{name}-{number}"
    return Directory(RunPaths(root), must_resume=False, notes=notes, made=True)


def _make(root: Path) -> bool:
    """Make the directory; False if it is there. Two jobs never both make it."""
    root.parent.mkdir(parents=True, exist_ok=True)
    try:
        root.mkdir()
    except FileExistsError:
        return False
    return True


def _unfinished(cfg: Config, notes: list[str]) -> Path | None:
    """The newest unfinished run of this name and config; `notes` tells of those that are unreadable."""
    for root in sorted(Path(cfg.output).glob(f"{cfg.name}-[0-9]*-[0-9]*/"), reverse=True):
        paths = RunPaths(root)
        if paths.summary.exists() or not list_checkpoints(paths.checkpoints):
            continue
        try:
            known = load_config(paths.config)
        except HvdtrainError as error:
            notes.append(f"--resume auto passes over {root}: {str(error).splitlines()[0]}")
            continue
        if _training_part(known) == _training_part(cfg):
            return root
    return None


def _training_part(cfg: Config) -> dict[str, Any]:
    """The sections of the config that the result depends on."""
    return cfg.model_dump(
        exclude={"output": True, "metrics": True, "checkpoint": True, "comm": True}
    )
