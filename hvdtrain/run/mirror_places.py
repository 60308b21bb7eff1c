"""Where the mirror of a run can be, behind one interface; and that of a folder.

The folder of a run in the mirror is named as its run directory, and has the same files: a run can be
resumed from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from hvdtrain.checkpoint_files import META, list_checkpoints, read_meta, remove, verify
from hvdtrain.checkpoint_keep import Keep, why_kept
from hvdtrain.engine.checkpoint import put_in_place, settle, sweep
from hvdtrain.errors import CheckpointError, ResourceError
from hvdtrain.files import open_regular, whole_file, write_atomically
from hvdtrain.paths import RunPaths
from hvdtrain.run.lock import RunLock
from hvdtrain.run.mirror_owner import OWNER, Owner, owner_file, owner_for, owner_in

DESCRIPTION = ("config", "environment", "classes", "dataset")
"""What a run needs to go on besides a checkpoint, by its names in RunPaths."""
CHUNK = 2**20


class Gone(Exception):
    """The checkpoint was deleted before it could be opened."""


class DamagedCopy(CheckpointError):
    """The copy is not what was written, and the checkpoint itself is intact."""


class Copy(NamedTuple):
    """A complete checkpoint in the mirror, or in the run itself."""

    name: str
    seal: str
    """SHA-256 of its metadata; empty if it does not count as a copy of anything."""


class Place(Protocol):
    """The mirror of one run. All methods may raise OSError."""

    root: str
    """How it is named to users."""
    remote: bool
    """Whether it is reached over a network, so that a look at it at the start is worth its while."""

    def owner(self) -> Owner:
        """The run that it is the mirror of."""

    def claim(self, paths: RunPaths) -> None:
        """Make it the mirror of the run, or take it up. Raises ResourceError if it is another's."""

    def release(self) -> None:
        """Let others use it."""

    def describe(self, paths: RunPaths) -> None:
        """Copy the files besides checkpoints that a run needs to go on, as far as they are new."""

    def copies(self) -> list[Copy]:
        """The complete checkpoints, the last written first; not verified."""

    def put(self, path: Path) -> str:
        """Copy a checkpoint, which counts only when every byte was read again; returns its name there.

        Raises Gone, CheckpointError if it is damaged, DamagedCopy.
        """

    def prune(self, names: set[str], keep: Keep) -> None:
        """Delete what is neither of `names` nor kept by the rules, if only the mirror counts.

        Whenever it is killed, nothing is left that looks like a checkpoint and is none.
        """

    def get(self, name: str, directory: Path) -> str:
        """Copy a checkpoint back to `directory`, verified; returns its name there.

        Raises CheckpointError if it is damaged.
        """

    def get_description(self, paths: RunPaths) -> None:
        """Copy back what `describe` copies and the run has not."""


class Folder:
    """A mirror in a folder."""

    remote = False

    def __init__(self, place: str, name: str) -> None:
        self.paths = RunPaths(Path(place) / name)
        self.root = str(self.paths.root)
        self._lock: RunLock | None = None

    def owner(self) -> Owner:
        try:
            return owner_in((self.paths.root / OWNER).read_bytes())
        except OSError:
            return Owner("", "")

    def claim(self, paths: RunPaths) -> None:
        root = self.paths.root
        if root.exists() and paths.root.samefile(root):
            raise ResourceError(f"{root}: the run itself is there: there is no second copy")
        root.mkdir(parents=True, exist_ok=True)
        # A job that was killed here leaves hidden files at most.
        new = all(path.name.startswith(".") for path in root.iterdir())
        lock = RunLock(root)
        try:
            owner = owner_for(paths, self.root, None if new else self.owner())
            if new or owner != self.owner():
                write_atomically(root / OWNER, owner_file(owner))
            self.paths.checkpoints.mkdir(exist_ok=True)
            sweep(self.paths.checkpoints)
        except BaseException:
            lock.release()
            raise
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def describe(self, paths: RunPaths) -> None:
        _copy_description(paths, self.paths, anew=True)

    def copies(self) -> list[Copy]:
        return copies_in(self.paths.checkpoints)

    def put(self, path: Path) -> str:
        copy_checkpoint(path, self.paths.checkpoints)
        return path.name

    def prune(self, names: set[str], keep: Keep) -> None:
        found = list_checkpoints(self.paths.checkpoints)
        kept = why_kept(found, keep)
        for path in found:
            if path.name not in names and path not in kept:
                remove(path)

    def get(self, name: str, directory: Path) -> str:
        copy_checkpoint(self.paths.checkpoints / name, directory)
        return name

    def get_description(self, paths: RunPaths) -> None:
        _copy_description(self.paths, paths, anew=False)


def copies_in(directory: Path) -> list[Copy]:
    """The complete checkpoints in a folder, the last written first; not verified."""
    found = []
    for path in list_checkpoints(directory):
        try:
            found.append(Copy(path.name, seal((path / META).read_bytes())))
        except OSError:
            found.append(Copy(path.name, ""))
    return found


def seal(meta: bytes) -> str:
    """What tells one checkpoint from another: the SHA-256 of its metadata."""
    return hashlib.sha256(meta).hexdigest()


def copy_checkpoint(path: Path, directory: Path) -> None:
    """Copy a checkpoint to `directory`, and verify the copy before it gets its name.

    Raises OSError, Gone, CheckpointError if it is damaged, DamagedCopy.
    """
    try:
        with contextlib.ExitStack() as stack, new_checkpoint(directory, path.name) as part:
            for name, file in opened(path, stack).items():
                with whole_file(part / name) as copy:
                    shutil.copyfileobj(file, copy, CHUNK)
    except CheckpointError:
        what = f"{directory}: the copy of {path.name} is damaged when it is read again"
        raise fault(path, what) from None


@contextlib.contextmanager
def new_checkpoint(directory: Path, name: str) -> Iterator[Path]:
    """A folder for the files of a checkpoint, which gets its name if they are intact when the block ends.

    Raises OSError, CheckpointError if they are not.
    """
    part = directory / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        yield part
        _forget(part)
        verify(part)
        place = put_in_place(part, directory / name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    settle(place)


def fault(path: Path, otherwise: str) -> CheckpointError:
    """Why a copy of the checkpoint is not as it should be: itself is damaged, or `otherwise`."""
    try:
        verify(path)
    except CheckpointError as error:
        return CheckpointError(f"{str(error).partition(';')[0]}: not copied")
    return DamagedCopy(f"{otherwise}: not copied")


def opened(path: Path, stack: contextlib.ExitStack) -> dict[str, BinaryIO]:
    """All files of a checkpoint; when they are open it may be deleted."""
    try:
        names = [*read_meta(path)["sha256"], META]
        return {name: stack.enter_context(open_regular(path / name)) for name in names}
    except (OSError, CheckpointError):
        if not path.exists():
            raise Gone from None
        raise


def _forget(folder: Path) -> None:
    """Have the files read from the disk, not from memory, as far as the system lets us."""
    for file in folder.iterdir():
        with file.open("rb") as opened, contextlib.suppress(OSError):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _copy_description(source: RunPaths, target: RunPaths, *, anew: bool) -> None:
    """Copy the description of a run; without `anew` only what is missing."""
    for old, new in ((getattr(source, name), getattr(target, name)) for name in DESCRIPTION):
        if not old.exists() or (new.exists() and not anew):
            continue
        data = old.read_bytes()
        if not new.exists() or new.read_bytes() != data:
            write_atomically(new, data)
