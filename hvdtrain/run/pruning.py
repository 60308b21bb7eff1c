"""Deleting old checkpoints of a run that no job uses, after every byte of all was verified."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from hvdtrain import activity
from hvdtrain.checkpoint_files import (
    FILES,
    META,
    OPTIONAL,
    list_checkpoints,
    remove,
)
from hvdtrain.checkpoint_keep import Keep, why_kept
from hvdtrain.config.load import load_config
from hvdtrain.errors import CheckpointError, ConfigError, ResourceError
from hvdtrain.paths import RunPaths, run_root
from hvdtrain.run.checkpoints import check, folder_of, is_checkpoint, size_of, to_keep
from hvdtrain.run.lock import RunLock

OURS = {META, *FILES, *OPTIONAL}


@dataclass
class Pruned:
    """What was deleted, or would be."""

    kept: list[str] = field(default_factory=list)
    """Intact ones, the last written first."""
    reasons: dict[str, list[str]] = field(default_factory=dict)
    """Why each is kept."""
    deleted: list[str] = field(default_factory=list)
    deleted_bytes: int = 0
    left: dict[str, str] = field(default_factory=dict)
    """Neither counted nor deleted, and why."""
    failed: list[str] = field(default_factory=list)
    """One line for each that the disk did not let go."""


def prune(
    path: Path, last: int, best: int | None = None, every: int | None = None, *, dry_run: bool
) -> Pruned:
    """Delete the intact checkpoints of the run `path` except the `last` ones written, and those that
    `best` and `every` keep, see `Keep`; None: as the run's settings say.

    Raises ResourceError if a job uses the run, CheckpointError if there is no intact checkpoint,
    ConfigError if the settings are needed and cannot be read.
    """
    if is_checkpoint(path):
        raise ConfigError(f"{path}: one checkpoint, expected a run directory")
    folder = folder_of(path)
    try:
        lock = RunLock(path)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be locked: {error.strerror}") from None
    try:
        return _prune(folder, _settled(path, last, best, every), dry_run)
    finally:
        lock.release()


def _settled(path: Path, last: int, best: int | None, every: int | None) -> Keep:
    """What to keep; what is None as the settings of the run `path` say, 0 if it has none."""
    config = RunPaths(run_root(path)).config
    keep = Keep(last, 0, best or 0, every or 0, start=True)
    if not config.exists():
        return keep
    try:
        settled = to_keep(load_config(config))
    except ConfigError as error:
        if best is not None and every is not None:
            return keep
        text = str(error).splitlines()[0]
        raise ConfigError(f"{text}: give --keep-best and --keep-every") from None
    return replace(
        keep,
        best=settled.best if best is None else best,
        every=settled.every if every is None else every,
        lowest_loss=settled.lowest_loss,
    )


def _prune(folder: Path, keep: Keep, dry_run: bool) -> Pruned:
    done, intact = Pruned(), []
    for path in list_checkpoints(folder):
        activity.enter(f"verifying {path.name}")
        if reason := _reason_to_leave(path):
            done.left[path.name] = reason
        else:
            intact.append(path)
    if not intact:
        raise CheckpointError(f"{folder}: no intact checkpoint: nothing is deleted")
    reasons = why_kept(intact, keep)
    done.reasons = {path.name: why for path, why in reasons.items()}
    done.kept = [path.name for path in intact if path in reasons]
    old = [path for path in intact if path not in reasons]
    for path in reversed(old):  # the oldest first, however this ends
        size = size_of(path)
        try:
            if not dry_run:
                _delete(path)
        except OSError as error:
            done.failed.append(f"{error.filename or path}: cannot be deleted: {error.strerror}")
        else:
            done.deleted.append(path.name)
            done.deleted_bytes += size
    return done


def _reason_to_leave(path: Path) -> str:
    """Why a folder with the name of a checkpoint is none of ours to delete; empty if it is."""
    if path.is_symlink():
        return "a link"
    try:
        foreign = sorted({each.name for each in path.iterdir()} - OURS)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if foreign:
        return f"holds {foreign[0]}, which is not of hvdtrain"
    verdict = check(path)
    return "" if verdict.state == "ok" else verdict.fault or verdict.state


def _delete(path: Path) -> None:
    remove(path)
    gone = path.with_name(f".{path.name}.gone")
    if gone.exists():
        raise OSError(0, "files of it are left", str(gone))
