"""The directory a run writes to: a new one, a named one, or that of the run it resumes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config
from hvdtrain.engine.checkpoint import list_checkpoints
from hvdtrain.errors import CheckpointError, ConfigError, HvdtrainError, ResourceError
from hvdtrain.paths import RunPaths, fresh_stamp
from hvdtrain.run.changes import Begun, Change, compare, identity, read_begun, refusal
from hvdtrain.run.lock import RunLock
from hvdtrain.run.mirror import bring_back, require_client
from hvdtrain.run.other_ranks import Batch, UnsharedError, shared_anew, told
from hvdtrain.signals import cleaned_up

MOST_NOTES = 3
"""Of runs that `--resume auto` passes over; of the others it tells the number."""


@dataclass
class Directory:
    """The directory of an attempt, on one rank."""

    paths: RunPaths
    must_resume: bool
    """It must hold a usable checkpoint."""
    notes: list[str]
    """What there is to tell about the choice."""
    changes: list[Change] = field(default_factory=list)
    """Settings that differ from those that the run has had, see `hvdtrain.run.changes`."""
    batch: Batch | None = None
    """What keeps the global batch on this number of ranks; None: what the config says."""
    kept: str = ""
    """What to tell of it."""
    made: bool = False
    """This rank has made the directory."""
    lock: RunLock | None = None
    """On rank 0, once the directory is there."""


def run_directory(
    cfg: Config,
    comm: Comm,
    resume: str,
    run_dir: Path | None,
    accept: bool = False,
    batch_ranks: int | None = None,
) -> Directory:
    """The run's directory, chosen, made and locked by rank 0. `batch_ranks`: see `train`.

    Raises ResourceError if it cannot be made, or if another job uses it, and ConfigError if its run
    began with other settings, unless they are to be accepted.
    """
    own = Directory(RunPaths(Path()), must_resume=False, notes=[])
    with cleaned_up(lambda: _discard(own)), together(comm):
        if comm.rank == 0:
            try:
                batch = _meant_for(cfg, batch_ranks, comm.size)
                own = _choose_directory(cfg, comm.size, resume, run_dir, accept)
                if batch and batch_ranks and not own.must_resume:
                    own.batch = batch
                    own.kept = _told(cfg, batch, comm.size, batch_ranks, "begun")
                own.lock = RunLock(own.paths.root)
            except OSError as error:
                if own.made:
                    own.paths.root.rmdir()
                place = error.filename or cfg.output
                raise ResourceError(f"output: {place}: {error.strerror}") from None
    facts = [str(own.paths.root), own.must_resume, own.notes, own.changes, own.batch, own.kept]
    with cleaned_up(lambda: _discard(own)):
        shared = comm.gather_text(json.dumps(facts))[0]
    root, must_resume, notes, changes, batch, kept = json.loads(shared)
    return Directory(
        RunPaths(Path(root)),
        must_resume,
        notes,
        [Change(*change) for change in changes],
        Batch(*batch) if batch else None,
        kept,
        own.made,
        own.lock,
    )


def _meant_for(cfg: Config, batch_ranks: int | None, ranks: int) -> Batch | None:
    """What gives the global batch of a new run that `cfg` has on `batch_ranks` ranks; None: what it says."""
    if batch_ranks in (None, ranks):
        return None
    given = Batch.of(cfg)
    return shared_anew(given, given.total(batch_ranks or ranks), ranks)


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
        with cleaned_up(lambda: _discard(directory)):
            yield
    except BaseException:
        _discard(directory)
        if directory.lock is not None:
            directory.lock.release()
        raise


def _discard(directory: Directory) -> None:
    if directory.made and not list_checkpoints(directory.paths.checkpoints):
        shutil.rmtree(directory.paths.root, ignore_errors=True)


def _choose_directory(
    cfg: Config, world_size: int, resume: str, run_dir: Path | None, accept: bool
) -> Directory:
    mirror = cfg.checkpoint.mirror
    require_client(mirror)
    if resume not in ("never", "auto"):
        notes = bring_back(RunPaths(Path(resume)), mirror)
        if not Path(resume).is_dir():
            raise CheckpointError(f"--resume {resume}: no such run directory")
        return _begun(RunPaths(Path(resume)), cfg, world_size, accept, notes)
    if run_dir is not None:
        paths = RunPaths(run_dir)
        notes = bring_back(paths, mirror) if resume == "auto" else []
        begun = bool(list_checkpoints(paths.checkpoints))
        if resume == "never" and begun:
            raise CheckpointError(
                f"--run-dir {run_dir}: holds a run already: add --resume auto to go on with it"
            )
        _require_writable(run_dir)
        if begun:
            return _begun(paths, cfg, world_size, accept, notes)
        return Directory(paths, must_resume=False, notes=notes, made=_make(run_dir))
    notes = []
    if resume == "auto" and (found := _unfinished(cfg, world_size, accept, notes)) is not None:
        return found
    name = f"{cfg.name}-{fresh_stamp(Path(cfg.output), cfg.name)}"
    root = Path(cfg.output) / name
    _require_writable(root)
    number = 1
    while not _make(root):
        number += 1
        root = Path(cfg.output) / f"{name}-{number}"
    return Directory(RunPaths(root), must_resume=False, notes=notes, made=True)


def _begun(
    paths: RunPaths, cfg: Config, world_size: int, accept: bool, notes: list[str]
) -> Directory:
    """The directory of a run that was named. Raises ConfigError if it began with other settings."""
    if not list_checkpoints(paths.checkpoints):
        return Directory(paths, must_resume=True, notes=notes)
    try:
        begun = read_begun(paths)
    except HvdtrainError as error:
        text = f"the settings that this run began with are not known: {str(error).splitlines()[0]}"
        if not accept:
            raise ConfigError(
                f"{paths.root}: {text}: go on with those of now by --accept-changes"
            ) from None
        return Directory(paths, must_resume=True, notes=[*notes, text])
    try:
        found = _compared(paths, begun, cfg, world_size, accept)
    except UnsharedError as error:
        raise ConfigError(str(error)) from None
    except ConfigError as error:
        raise ConfigError(f"{paths.root}: {error}") from None
    if (refused := identity(found.changes)) and not accept:
        raise refusal(paths.root, refused)
    return replace(found, notes=notes)


def _compared(
    paths: RunPaths, begun: Begun, cfg: Config, world_size: int, accept: bool
) -> Directory:
    """The directory of a run, and what differs if `cfg` goes on with it.

    Raises ConfigError, and UnsharedError if only the number of ranks stands against it.
    """
    batch, kept = None, ""
    try:
        batch = begun.batch_for(cfg, world_size)
    except UnsharedError as error:
        free = cfg.train.model_copy(update={"on_other_ranks": "as_given"})
        others = compare(begun, cfg.model_copy(update={"train": free}), world_size)
        if not accept and not identity(others):
            raise UnsharedError(f"{paths.root}: {error}") from None
    if batch is not None:
        kept = _told(cfg, batch, world_size, begun.world_size or world_size, "resumed")
        cfg = batch.put_in(cfg)
    changes = compare(begun, cfg, world_size)
    return Directory(paths, must_resume=True, notes=[], changes=changes, batch=batch, kept=kept)


def _make(root: Path) -> bool:
    """Make the directory; False if it is there. Two jobs never both make it."""
    root.parent.mkdir(parents=True, exist_ok=True)
    try:
        root.mkdir()
    except FileExistsError:
        return False
    return True


def _unfinished(cfg: Config, world_size: int, accept: bool, notes: list[str]) -> Directory | None:
    """The newest unfinished run of this name with these settings, else with others, if they are to
    be accepted. `notes` tells of those that are passed over, and why."""
    other: Directory | None = None
    passed: list[tuple[Path, str]] = []
    for root in sorted(Path(cfg.output).glob(f"{cfg.name}-[0-9]*-[0-9]*/"), reverse=True):
        paths = RunPaths(root)
        if paths.summary.exists():
            continue
        if not list_checkpoints(paths.checkpoints):
            notes += bring_back(paths, cfg.checkpoint.mirror)
        if not list_checkpoints(paths.checkpoints):
            passed.append((root, "it has no checkpoint"))
            continue
        try:
            begun = read_begun(paths)
            if begun.cfg.name != cfg.name:
                continue
            found = _compared(paths, begun, cfg, world_size, accept)
        except UnsharedError as error:  # it would be hours of work to begin anew
            raise ConfigError(str(error)) from None
        except HvdtrainError as error:
            passed.append((root, str(error).splitlines()[0]))
            continue
        if not identity(found.changes):
            other = found
            break
        other = other or found
        passed.append((root, found.changes[0].text + found.changes[0].hint))
    chosen = other if other and (accept or not identity(other.changes)) else None
    if chosen:
        notes += bring_back(chosen.paths, cfg.checkpoint.mirror)
        passed = list(takewhile(lambda item: item[0] != chosen.paths.root, passed))
    notes += [f"--resume auto passes over {root}: {why}" for root, why in passed[:MOST_NOTES]]
    if (more := len(passed) - MOST_NOTES) > 0:
        notes.append(f"--resume auto passes over {more} more unfinished runs")
    return replace(chosen, notes=notes) if chosen else None


def _told(cfg: Config, batch: Batch, ranks: int, before: int, verb: str) -> str:
    shared = cfg.model.batch_norm == "global"
    return told(Batch.of(cfg), batch, ranks, before, verb, global_norm=shared)
