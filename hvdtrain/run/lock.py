"""One job at a time in a run directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from hvdtrain import activity
from hvdtrain.errors import ResourceError

FILE = ".lock"
BEAT_S = 10.0
"""Time from one sign of life to the next."""
SILENT_S = 35.0
"""Without a sign of life for so long, a job on another host has ended."""
_ABOUT = 400  # bytes that are read of it


class RunLock:
    """Held by rank 0 until its process ends, however it ends: the kernel then releases it.

    It is an advisory lock on a file that says who holds it, with a sign of life every `BEAT_S`. These tell of
    a job on another host where a network disk has no locks, or keeps them to each host.
    """

    def __init__(self, root: Path, env: Mapping[str, str] = os.environ) -> None:
        """Raises ResourceError if another process holds it, OSError if the file cannot be opened."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._root, self._path = root, root / FILE
        self._file = os.open(self._path, flags, 0o644)
        self._ended = threading.Event()
        try:
            self._take()
        except BaseException:
            self._close()
            raise
        job = f", Slurm job {env['SLURM_JOB_ID']}" if env.get("SLURM_JOB_ID") else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._holder = f"host {socket.gethostname()}, process {os.getpid()}{job}, since {since}"
        with contextlib.suppress(OSError):  # a full disk: the lock holds without it
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{self._holder}\nbeat 0\n".encode(), 0)
        self._thread = threading.Thread(target=self._live, name="hvdtrain-lock", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Raise ResourceError if another job has taken the directory: this one had given no sign of life for long."""
        holder = self._read()[0]
        if holder not in ("", self._holder):
            raise ResourceError(
                f"{self._root}: another job has taken it over ({holder}), as this one was stopped for "
                "long: this one writes nothing any more"
            )

    def release(self) -> None:
        """Let others use the directory; it may be called again."""
        if self._file >= 0:
            self._ended.set()
            self._thread.join(BEAT_S)
            if (
                self._thread.is_alive()
            ):  # the disk hangs: its file must not become another one's number
                return
            with contextlib.suppress(OSError):
                if self._read()[0] == self._holder:
                    os.ftruncate(self._file, 0)
            self._close()

    def _take(self) -> None:
        """Lock the file, and make sure that no job on another host uses it. Raises ResourceError."""
        locks = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise self._in_use(self._read()[0]) from None
            locks = False
        holder, beat = self._read()
        if not holder or (locks and holder.startswith(f"host {socket.gethostname()}, ")):
            return
        # The time is that of the disk's host, whose clock may differ from ours.
        last = os.fstat(self._file).st_mtime
        os.utime(self._file)
        left_s = SILENT_S - (os.fstat(self._file).st_mtime - last)
        activity.enter(f"waiting whether the last job still uses {self._root} ({holder})")
        until = time.monotonic() + min(left_s, SILENT_S)
        while time.monotonic() < until:
            time.sleep(min(1.0, SILENT_S / 10))
            activity.beat()
            if self._read() != (holder, beat):
                raise self._in_use(holder)

    def _in_use(self, holder: str) -> ResourceError:
        return ResourceError(
            f"{self._root}: in use by another job ({holder or 'unknown'}): wait until it has ended, or "
            "stop it"
        )

    def _live(self) -> None:
        """Give signs of life until the end, or until another job has taken over."""
        beat = 0
        while not self._ended.wait(BEAT_S):
            beat += 1
            with contextlib.suppress(OSError):
                if self._read()[0] != self._holder:
                    return
                text = f"{self._holder}\nbeat {beat}\n".encode()
                os.pwrite(self._file, text, 0)
                os.fsync(self._file)

    def _read(self) -> tuple[str, str]:
        """Who holds the lock, and the last sign of life, as the disk has them; empty if nobody does."""
        try:
            with self._path.open(
                "rb"
            ) as file:  # a network disk asks its server when a file is opened
                text = file.read(_ABOUT).decode("utf-8", "replace")
        except OSError:
            return "", ""
        holder, _, beat = text.strip().partition("\n")
        return holder, beat

    def _close(self) -> None:
        os.close(self._file)
        self._file = -1


def in_use(root: Path) -> bool:
    """Whether a job gives signs of life in the run directory `root`. Asks for no lock: none is disturbed."""
    path = root / FILE
    try:
        quiet_s = time.time() - path.stat().st_mtime
        return path.is_file() and path.stat().st_size > 0 and quiet_s < SILENT_S
    except OSError:
        return False
