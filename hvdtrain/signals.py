"""Stop after a checkpoint: a signal sets a flag, on which the ranks agree about once a second."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""SIGHUP comes when a terminal or an ssh connection is closed."""
ENDING = (signal.SIGTERM, signal.SIGINT)
"""A second signal ends the process only if it is one of these. The others come without a person: SIGUSR1
from launchers and batch scripts that pass on a stop, on a busy host many seconds after the first."""
REPEAT_S = 3.0
"""Signals within this time count as one: launchers repeat a signal that the ranks already have, and
Slurm signals a batch script and all processes it started."""
PARENT = os.getppid()
"""The process that started this one."""
MPI_STARTERS = ("mpirun", "mpiexec", "orte", "prte")
"""How the names of Open MPI's programs that start ranks begin: orted, orterun_wrapper, prterun, …"""


def parent_gone() -> bool:
    """Whether the process that started this one has ended."""
    return os.getppid() != PARENT


def stopping_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask this process to stop: without SIGHUP where `nohup` has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(n for n in STOPPING if n != signal.SIGHUP or not ignored)


def expect_notice() -> None:
    """Keep SIGCONT for `wait_for_notice` if mpirun started this process; call it before other threads
    start.

    When another rank has failed, mpirun sends SIGCONT at once, SIGTERM after
    `odls_base_sigkill_timeout`, 1 s by default, and SIGKILL after as long again. In training it is no
    notice: mpirun also passes on the SIGCONT of a job that was suspended.
    """
    with contextlib.suppress(OSError):
        if Path(f"/proc/{PARENT}/comm").read_text().startswith(MPI_STARTERS):
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCONT])


def wait_for_notice(seconds: float) -> bool:
    """Wait until mpirun says that it ends this process, at most `seconds`; whether it did."""
    if not _expects_notice():
        time.sleep(seconds)
        return False
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if _is_notice(signal.sigtimedwait([signal.SIGCONT], left)):
            return True
    return False


def noticed() -> bool:
    """Whether mpirun has said since the last call that it ends this process; does not wait."""
    return _expects_notice() and _is_notice(signal.sigtimedwait([signal.SIGCONT], 0))


def _expects_notice() -> bool:
    return signal.SIGCONT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def _is_notice(found: signal.struct_siginfo | None) -> bool:
    """Whether SIGCONT came from mpirun; None: there was none."""
    return found is not None and found.si_pid == PARENT


class StopSignals:
    """While active, SIGTERM, SIGUSR1, SIGINT or SIGHUP sets `requested`.

    Another SIGTERM or SIGINT more than `REPEAT_S` later kills.

    In a thread that is not the main one it does nothing: only the main thread can handle signals.
    """

    def __init__(self) -> None:
        self.requested = False
        self._first_s: float | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._note) for n in stopping_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_s is None:
            self.requested, self._first_s = True, now
        elif number in ENDING and now - self._first_s > REPEAT_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def ignore_repeats() -> None:
    """Ignore all stop signals: the process is ending, and a repeated one must not change its exit code."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
