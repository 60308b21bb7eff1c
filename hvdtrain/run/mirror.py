"""A second copy of the checkpoints of a run, in a folder or an object store: `checkpoint.mirror`."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hvdtrain import activity
from hvdtrain.checkpoint_files import NEW, list_checkpoints, verify
from hvdtrain.checkpoint_keep import Keep, why_kept
from hvdtrain.config.object_urls import client, is_url
from hvdtrain.errors import CheckpointError, HvdtrainError, ResourceError
from hvdtrain.files import move_aside, write_atomically
from hvdtrain.paths import RunPaths
from hvdtrain.run.lock import RunLock
from hvdtrain.run.mirror_owner import OWNER, run_id
from hvdtrain.run.mirror_places import DamagedCopy, Folder, Gone, Place, copies_in
from hvdtrain.run.mirror_store import Store
from hvdtrain.run.object_store import StoreError

CLOSE_S = 30.0
"""Longest wait at the end of a run for a copy that is being made."""
BEAT_S = 0.2


def place_of(paths: RunPaths, where: str, beat: Callable[[], None] | None = None) -> Place:
    """The mirror of the run of `paths` in the folder or at the URL `where`.

    `beat` is called while a store is waited for. Raises ConfigError if the package for it is missing.
    """
    return Store(where, paths.name, beat) if is_url(where) else Folder(where, paths.name)


def require_client(where: str | None) -> None:
    """Raises ConfigError if `where` is a URL whose package is missing."""
    if where is not None and is_url(where):
        client(where)


class Mirror:
    """Keeps the mirror of a run up to date in a thread; no fault of it is raised."""

    def __init__(self, paths: RunPaths, where: str, keep: Keep) -> None:
        self._paths, self._keep = paths, keep
        self._place = place_of(paths, where)
        self._claimed = False
        self._thread: threading.Thread | None = None
        self._again = threading.Event()
        self._damaged: set[str] = set()
        self._told: set[str] = set()
        self._notes: list[str] = []

    def look(self) -> None:
        """At the start of a run: if the mirror is reached over a network, see whether it can be written."""
        if self._place.remote:
            self.start()

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
                self._tell(f"{self._place.root}: not complete after {timeout_s:.0f} s")
                return
        if self._claimed:
            self._place.release()
            self._claimed = False

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while self._again.is_set():
            self._again.clear()
            try:
                self._update()
            except StoreError as error:
                self._tell(str(error), error.kind)
            except HvdtrainError as error:
                self._tell(str(error))
            except OSError as error:
                self._tell(f"{error.filename or self._place.root}: {error.strerror or error}")
            except Exception as error:  # noqa: BLE001 - training goes on whatever happens here
                self._tell(f"{self._place.root}: {error}")

    def _tell(self, text: str, kind: str = "") -> None:
        """A line, once in a run; of those of a `kind` the first."""
        if (kind or text) not in self._told:
            self._told.add(kind or text)
            self._notes.append(f"checkpoint.mirror: {text}; training goes on")

    def _update(self) -> None:
        """Copy what is missing, then delete what is not to keep, as the mirror itself or the run has it.

        Raises OSError, ResourceError.
        """
        if not self._claimed:
            self._place.claim(self._paths)
            self._claimed = True
        self._place.describe(self._paths)
        there = {copy.seal: copy.name for copy in self._place.copies() if copy.seal}
        kept = why_kept(list_checkpoints(self._paths.checkpoints), self._keep)
        names = set()
        for copy in copies_in(self._paths.checkpoints):
            path = self._paths.checkpoints / copy.name
            if path in kept:
                names.add(there.get(copy.seal) or self._put(path))
        self._place.prune(names, self._keep)

    def _put(self, path: Path) -> str:
        """Copy a checkpoint; its name in the mirror, empty if it was not copied."""
        if path.name in self._damaged:
            return ""
        try:
            return self._place.put(path)
        except Gone:
            pass
        except DamagedCopy as error:  # the next time may do better
            self._tell(str(error))
        except CheckpointError as error:
            self._damaged.add(path.name)
            self._tell(str(error))
        return ""


def adopt(paths: RunPaths) -> None:
    """Let the folder be a run directory of its own, and no mirror, from now on. Raises OSError."""
    (paths.root / OWNER).unlink(missing_ok=True)


def bring_back(paths: RunPaths, where: str | None) -> list[str]:
    """If no checkpoint of a run is intact, copy the newest intact one of its mirror.

    Returns what there is to tell. Raises ResourceError if another job uses the run directory, or if a
    store cannot be asked, OSError if the run directory cannot be written.
    """
    if where is None:
        return []
    place = place_of(paths, where, activity.beat)
    activity.enter(f"verifying the checkpoints of {paths.name}")
    if any(_intact(paths.checkpoints)):
        return []
    try:
        activity.enter(f"looking for checkpoints of {paths.name} in the mirror")
        owner, own_id = place.owner(), run_id(paths)
        if owner.run != str(paths.root.resolve()) or (own_id and owner.number not in ("", own_id)):
            return []
        found = place.copies()
        notes = _brought_back(paths, place, [copy.name for copy in found]) if found else []
    except StoreError as error:
        raise ResourceError(
            f"checkpoint.mirror: {error}: no checkpoint in {paths.checkpoints} is intact, and whether "
            "the mirror has one is not known: try again, or go on without it by checkpoint.mirror=null"
        ) from None
    if found and owner.number:
        write_atomically(paths.mirror_id, owner.number.encode())
    return notes


def _brought_back(paths: RunPaths, place: Place, found: list[str]) -> list[str]:
    paths.checkpoints.mkdir(parents=True, exist_ok=True)
    lock = RunLock(paths.root)
    notes = []
    try:
        for name in found:
            own = paths.checkpoints / name.removesuffix(NEW)
            if own.exists():
                notes.append(f"{own}: damaged, now {move_aside(own).name}")
            activity.enter(f"copying {name} back from the mirror")
            try:
                own_name = place.get(name, paths.checkpoints)
            except CheckpointError as error:
                notes.append(str(error))
                continue
            place.get_description(paths)
            text = f"no checkpoint in {paths.checkpoints} is intact: {own_name} was copied back"
            return [*notes, f"{text} from the mirror {place.root}"]
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
