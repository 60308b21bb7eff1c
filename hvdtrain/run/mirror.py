"""A second copy of the checkpoints of a run, on another disk: `checkpoint.mirror`.

The folder of a run in the mirror is named as its run directory, and has the same files: a run can be
resumed from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hvdtrain import activity
from hvdtrain.checkpoint_files import (
    META,
    Keep,
    list_checkpoints,
    read_meta,
    remove,
    verify,
    why_kept,
)
from hvdtrain.engine.checkpoint import put_in_place, settle, sweep
from hvdtrain.errors import CheckpointError, HvdtrainError, ResourceError
from hvdtrain.files import move_aside, open_regular, whole_file, write_atomically
from hvdtrain.paths import RunPaths
from hvdtrain.run.lock import RunLock

OWNER = "mirror.json"
"""In the folder of a run: the run directory that it is the mirror of."""
CLOSE_S = 30.0
"""Longest wait at the end of a run for a copy that is being made."""
BEAT_S = 0.2
CHUNK = 2**20


def mirror_paths(paths: RunPaths, place: str) -> RunPaths:
    """The mirror of the run of `paths` in the folder `place`."""
    return RunPaths(Path(place) / paths.name)


class Mirror:
    """Keeps the mirror of a run up to date in a thread; no fault of it is raised."""

    def __init__(self, paths: RunPaths, place: str, keep: Keep) -> None:
        self._paths, self._mirror, self._keep = paths, mirror_paths(paths, place), keep
        self._lock: RunLock | None = None
        self._thread: threading.Thread | None = None
        self._again = threading.Event()
        self._damaged: set[str] = set()
        self._told: set[str] = set()
        self._notes: list[str] = []

    def start(self) -> None:
        """Copy what is new; if a copy is being made, after it."""
        self._again.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="hvdtrain-mirror", daemon=True)
            self._thread.start()

    def notes(self) -> list[str]:
        """What there is to tell, each line once in a run."""
        told, self._notes = self._notes, []
        return told

    def finish(self, timeout_s: float = CLOSE_S) -> None:
        """Wait for a copy that is being made."""
        if self._thread is not None:
            activity.enter("completing the mirror")
            end = time.monotonic() + timeout_s
            while self._thread.is_alive() and (left_s := end - time.monotonic()) > 0:
                self._thread.join(min(left_s, BEAT_S))
                activity.beat()  # a slow disk is no stall of training
            if self._thread.is_alive():
                self._tell(f"{self._mirror.root}: not complete after {timeout_s:.0f} s")
                return
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while self._again.is_set():
            self._again.clear()
            try:
                self._update()
            except HvdtrainError as error:
                self._tell(str(error))
            except OSError as error:
                self._tell(f"{error.filename or self._mirror.root}: {error.strerror}")
            except Exception as error:  # noqa: BLE001 - training goes on whatever happens here
                self._tell(f"{self._mirror.root}: {error}")

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._notes.append(f"checkpoint.mirror: {text}; training goes on")

    def _update(self) -> None:
        """Copy what is missing, then delete what is not to keep, as the mirror itself or the run has it.

        Raises OSError, ResourceError.
        """
        if self._lock is None:
            self._lock = _claim(self._paths, self._mirror)
            sweep(self._mirror.checkpoints)
        _describe(self._paths, self._mirror, anew=True)
        kept = why_kept(list_checkpoints(self._paths.checkpoints), self._keep)
        for path in kept:
            self._copy(path)
        copies = list_checkpoints(self._mirror.checkpoints)
        names = {path.name for path in (*kept, *why_kept(copies, self._keep))}
        for copy in copies:
            if copy.name not in names:
                remove(copy)

    def _copy(self, path: Path) -> None:
        if path.name in self._damaged or _same(path, self._mirror.checkpoints / path.name):
            return
        try:
            copy_checkpoint(path, self._mirror.checkpoints)
        except _Gone:
            return
        except CheckpointError as error:
            self._damaged.add(path.name)
            self._tell(str(error))


class _Gone(Exception):
    """The checkpoint was deleted before it could be opened."""


def copy_checkpoint(path: Path, directory: Path) -> None:
    """Copy a checkpoint to `directory`, and verify the copy before it gets its name.

    Raises OSError, and CheckpointError if it is damaged.
    """
    part = directory / f".{path.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        with contextlib.ExitStack() as stack:
            files = _opened(path, stack)
            part.mkdir()
            for name, file in files.items():
                with whole_file(part / name) as copy:
                    shutil.copyfileobj(file, copy, CHUNK)
        _forget(part)
        verify(part)
        place = put_in_place(part, directory / path.name)
    except CheckpointError:
        raise CheckpointError(f"{_fault(path, directory)}: not copied") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    settle(place)


def _fault(path: Path, directory: Path) -> str:
    """Why a copy of the checkpoint is not as it should be."""
    try:
        verify(path)
    except CheckpointError as error:
        return str(error).partition(";")[0]
    return f"{directory}: the copy of {path.name} is damaged when it is read again"


def _opened(path: Path, stack: contextlib.ExitStack) -> dict[str, BinaryIO]:
    """All files of a checkpoint; when they are open it may be deleted."""
    try:
        names = [*read_meta(path)["sha256"], META]
        return {name: stack.enter_context(open_regular(path / name)) for name in names}
    except (OSError, CheckpointError):
        if not path.exists():
            raise _Gone from None
        raise


def _forget(folder: Path) -> None:
    """Have the files read from the disk, not from memory, as far as the system lets us."""
    for file in folder.iterdir():
        with file.open("rb") as opened, contextlib.suppress(OSError):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _same(path: Path, copy: Path) -> bool:
    """Whether `copy`, which was verified when it was made, is that of `path`."""
    try:
        return (path / META).read_bytes() == (copy / META).read_bytes()
    except OSError:
        return False


def _describe(source: RunPaths, target: RunPaths, *, anew: bool) -> None:
    """Copy the files that a run needs to go on; without `anew` only those that are missing."""
    names = ("config", "environment", "classes", "dataset")
    for old, new in ((getattr(source, name), getattr(target, name)) for name in names):
        if not old.exists() or (new.exists() and not anew):
            continue
        data = old.read_bytes()
        if not new.exists() or new.read_bytes() != data:
            write_atomically(new, data)


def _claim(paths: RunPaths, mirror: RunPaths) -> RunLock:
    """Make the folder of the mirror, or take it up. Raises OSError, ResourceError."""
    if mirror.root.exists() and paths.root.samefile(mirror.root):
        raise ResourceError(f"{mirror.root}: the run itself is there: there is no second copy")
    mirror.root.mkdir(parents=True, exist_ok=True)
    # A job that was killed here leaves hidden files at most.
    new = all(path.name.startswith(".") for path in mirror.root.iterdir())
    lock = RunLock(mirror.root)
    try:
        if new:
            owner = {"run": str(paths.root.resolve())}
            write_atomically(mirror.root / OWNER, json.dumps(owner).encode())
        elif (found := _owner(mirror)) != str(paths.root.resolve()):
            whose = f"is the mirror of {found}" if found else "is no mirror"
            raise ResourceError(f"{mirror.root}: {whose}: nothing is copied there")
        mirror.checkpoints.mkdir(exist_ok=True)
    except BaseException:
        lock.release()
        raise
    return lock


def _owner(mirror: RunPaths) -> str:
    """The run directory that it is the mirror of; empty if it is none."""
    try:
        return str(json.loads((mirror.root / OWNER).read_bytes())["run"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def adopt(paths: RunPaths) -> None:
    """Let the folder be a run directory of its own, and no mirror, from now on. Raises OSError."""
    (paths.root / OWNER).unlink(missing_ok=True)


def bring_back(paths: RunPaths, place: str | None) -> list[str]:
    """If no checkpoint of a run is intact, copy the newest intact one of its mirror.

    Returns what there is to tell. Raises ResourceError if another job uses the run directory, OSError
    if that cannot be written.
    """
    mirror = mirror_paths(paths, place) if place else None
    if mirror is None or _owner(mirror) != str(paths.root.resolve()):
        return []
    activity.enter(f"verifying the checkpoints of {paths.name}")
    if not (found := list_checkpoints(mirror.checkpoints)) or any(_intact(paths.checkpoints)):
        return []
    paths.checkpoints.mkdir(parents=True, exist_ok=True)
    lock = RunLock(paths.root)
    notes = []
    try:
        for path in found:
            own = paths.checkpoints / path.name
            if own.exists():
                notes.append(f"{own}: damaged, now {move_aside(own).name}")
            activity.enter(f"copying {path.name} back from the mirror")
            try:
                copy_checkpoint(path, paths.checkpoints)
            except CheckpointError as error:
                notes.append(str(error))
                continue
            _describe(mirror, paths, anew=False)
            where = f"no checkpoint in {paths.checkpoints} is intact"
            return [*notes, f"{where}: {path.name} was copied back from the mirror {mirror.root}"]
    finally:
        lock.release()
    return notes


def _intact(directory: Path) -> Iterator[bool]:
    for path in list_checkpoints(directory):
        try:
            verify(path)
        except CheckpointError:
            continue
        yield True
