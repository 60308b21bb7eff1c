"""One job at a time in a run directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from hvdtrain.errors import ResourceError

FILE = ".lock"
_ABOUT = 400  # bytes that are read of it


class RunLock:
    """Held by rank 0 until its process ends, however it ends: the kernel then releases it.

    It is an advisory lock on a file that says who holds it. Where the file system has no locks,
    nothing is held.
    """

    def __init__(self, root: Path, env: Mapping[str, str] = os.environ) -> None:
        """Raises ResourceError if another process holds it, OSError if the file cannot be opened."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(root / FILE, flags, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, _ABOUT, 0).decode("utf-8", "replace").strip()
            self.release()
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ResourceError(
                    f"{root}: in use by another job ({holder or 'unknown'}): wait until it has ended, or "
                    "stop it"
                ) from None
            return
        job = f", Slurm job {env['SLURM_JOB_ID']}" if env.get("SLURM_JOB_ID") else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"host {socket.gethostname()}, process {os.getpid()}{job}, since {since}\n"
        with contextlib.suppress(OSError):  # a full disk: the lock holds without it
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, text.encode(), 0)

    def release(self) -> None:
        """Let others use the directory; it may be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
