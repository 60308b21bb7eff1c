"""A folder in TMPDIR for as long as this process lives; the next one removes what a killed one has left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hvdtrain.errors import ResourceError

PREFIX = "hvdtrain-launch-"
LOCK = "lock"
YOUNG_S = 60.0
"""A folder may be without its lock for a moment after it was made."""


@contextlib.contextmanager
def note_folder() -> Iterator[Path]:
    """The folder; it is removed at the end. Raises ResourceError if there is no room for it."""
    _sweep(Path(tempfile.gettempdir()))
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ResourceError(f"TMPDIR: no folder for temporary files: {error.strerror}") from None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Remove folders of this user whose process has ended: the kernel has released their locks."""
    for folder in place.glob(f"{PREFIX}*/"):
        with contextlib.suppress(OSError):  # another one's, in use, or gone meanwhile
            about = folder.lstat()
            # A folder from the future was made before the clock was set back.
            young = 0 <= time.time() - about.st_mtime < YOUNG_S
            if about.st_uid != os.getuid() or young:
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
