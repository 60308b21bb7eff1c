"""Folders for as long as this process lives; the next one removes what a killed one has left. So do ranks with
what a killed mpirun has left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from hvdtrain.errors import ResourceError

PREFIX = "hvdtrain-launch-"
LOCK = "lock"
YOUNG_S = 60.0
"""A folder may be without its lock for a moment after it was made."""


SESSION = "OMPI_MCA_orte_jobfam_session_dir"
"""In the environment of a rank: the folder of this job's files on this host, below `ompi.HOST.UID`."""
SHARED_MEMORY = Path("/dev/shm")
OPEN_MPI = {
    "OMPI_MCA_orte_tmpdir_base": None,
    "OMPI_MCA_btl_vader_backing_directory": SHARED_MEMORY,
    "OMPI_MCA_btl_sm_backing_directory": SHARED_MEMORY,
}
"""Where Open MPI keeps its session and the memory that ranks share, and where each should be (None: TMPDIR);
the last is the name of the second from version 5 on."""


@contextlib.contextmanager
def open_mpi_folders(env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Variables by which mpirun leaves its files in folders of ours; for jobs on this host alone.

    What `env` has set stays. Raises ResourceError if there is no room for them.
    """
    with contextlib.ExitStack() as stack:
        folders: dict[Path | None, Path] = {}
        for place in set(OPEN_MPI.values()):
            if place is None or os.access(place, os.W_OK | os.X_OK):
                folders[place] = stack.enter_context(note_folder(place))
        yield {
            name: str(folders[place])
            for name, place in OPEN_MPI.items()
            if place in folders and name not in env
        }


@contextlib.contextmanager
def note_folder(place: Path | None = None) -> Iterator[Path]:
    """A folder in `place` (None: TMPDIR), which is removed at the end. Raises ResourceError if there is
    no room for it."""
    _sweep(place or Path(tempfile.gettempdir()))
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        lock = _hold(folder)
    except OSError as error:
        where = place or "TMPDIR"
        raise ResourceError(f"{where}: no folder for temporary files: {error.strerror}") from None
    try:
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _hold(folder: Path) -> int:
    """Lock the folder for as long as the descriptor is open. The file gets its name when it is locked."""
    new = folder / f"new-{LOCK}"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.rename(folder / LOCK)
    return lock


def _sweep(place: Path) -> None:
    """Remove folders of this user that no process uses any more."""
    for folder in place.glob(f"{PREFIX}*/"):
        with contextlib.suppress(OSError):  # another one's, in use, or gone meanwhile
            about = folder.lstat()
            if about.st_uid != os.getuid():
                continue
            if not (folder / LOCK).exists():
                # A folder from the future was made before the clock was set back.
                if not 0 <= time.time() - about.st_mtime < YOUNG_S:
                    folder.rmdir()  # if it is empty
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until its process has ended
                if not _has_users(folder):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _has_users(folder: Path) -> bool:
    """Whether a process was started with the folder in its environment: a rank whose launcher was killed
    may still be writing its checkpoint."""
    name = os.fsencode(folder)
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # of another user, or ended meanwhile
            if name in environ.read_bytes():
                return True
    return False


def remove_session(env: Mapping[str, str]) -> None:
    """Remove the folder that Open MPI keeps for a job on this host; for a rank whose launcher is gone."""
    session = Path(env.get(SESSION, ""))
    if session.parent.name.startswith("ompi."):
        shutil.rmtree(session, ignore_errors=True)
        with contextlib.suppress(OSError):  # of other jobs as well
            session.parent.rmdir()
