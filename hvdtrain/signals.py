"""Signals that ask a process to stop: before training they end it, in training they set a flag, on which the
ranks agree about once a second."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
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
LAST_WORDS_S = 3.0
"""Time for the last line and for cleaning up, when a signal ends the process at once."""
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


def interrupt_as_usual() -> None:
    """Have Ctrl-C raise KeyboardInterrupt, for commands that clean up; `hvdtrain.__main__` has it kill
    while they are imported."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


_hearers: list[Callable[[int], None]] = []
"""Who hears of stop signals: the last one."""
_cleaners: list[Callable[[], None]] = []


@contextlib.contextmanager
def heard(hear: Callable[[int], None]) -> Iterator[None]:
    """Have a thread call `hear` with the number of each stop signal, at once, until the end of the context.

    The main thread handles a signal only between two calls, and a call may be a step that takes half a
    minute, an import, or for ever. Within another such context, `hear` takes over. In a thread that is
    not the main one it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _hearers:
        _hearers.append(hear)
        try:
            yield
        finally:
            _hearers.remove(hear)
        return
    source, target = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(target, False)
    _hearers.append(hear)
    thread = threading.Thread(target=_listen, args=(source,), name="signals", daemon=True)
    thread.start()
    outer = signal.set_wakeup_fd(target, warn_on_full_buffer=False)
    before: dict[signal.Signals, Any] = {
        n: signal.signal(n, _left_to_thread) for n in stopping_signals()
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            # One that is ignored by now stays so: the process is ending.
            if signal.getsignal(number) is _left_to_thread:
                signal.signal(number, handler)
        signal.set_wakeup_fd(outer)
        _hearers.clear()
        os.close(target)
        thread.join(1)


def _left_to_thread(_number: int, _frame: FrameType | None) -> None:
    """The thread of `heard` does what there is to do."""


def _listen(source: int) -> None:
    while numbers := os.read(source, 64):
        for number in numbers:
            if number in STOPPING and _hearers:
                _hearers[-1](number)
    os.close(source)


@contextlib.contextmanager
def cleaned_up(clean: Callable[[], None]) -> Iterator[None]:
    """Have `end_at_once` call `clean` if it ends the process within this context."""
    _cleaners.append(clean)
    try:
        yield
    finally:
        _cleaners.remove(clean)


def end_at_once(number: int, say: Callable[[], None]) -> None:
    """End this process because of a signal: clean up, `say` why, and exit with 128 + `number`.

    To be called by the thread of `heard`. A disk or an output that hangs cannot hold it up.
    """

    def last_words() -> None:
        for clean in reversed(_cleaners):
            with contextlib.suppress(Exception):
                clean()
        say()

    words = threading.Thread(target=last_words, daemon=True)
    words.start()
    words.join(LAST_WORDS_S)
    os._exit(128 + number)


class StopSignals:
    """While active, SIGTERM, SIGUSR1, SIGINT or SIGHUP sets `requested`.

    Another SIGTERM or SIGINT more than `REPEAT_S` later kills. After a request that stays so to the end of
    the process, which a repeated signal must not change.

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
        if self.requested:
            atexit.register(ignore_repeats)  # Python puts back all handlers but this
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_s is None:
            self.requested, self._first_s = True, now
        elif number in ENDING and now - self._first_s > REPEAT_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class HeardStops(StopSignals):
    """The same by the thread of `heard`, which calls `on_request` at once when a signal asks to stop.

    The second signal calls `on_end`, and ends with 128 + its number. Within another context of `heard`
    it stays in force to the end of that one: a signal while a run closes must not change how it ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_request: Callable[[], None] = _nothing
        self.on_end: Callable[[], None] = _nothing
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> HeardStops:
        if _hearers:
            _hearers.append(self._hear)
        else:
            self._stack.enter_context(heard(self._hear))
        return self

    def __exit__(self, *_: object) -> None:
        self.on_request = self.on_end = _nothing
        self._stack.close()

    def _hear(self, number: int) -> None:
        if self._first_s is None:
            self.requested, self._first_s = True, time.monotonic()
            # In a thread of its own: an output that hangs must not keep a second signal from being heard.
            threading.Thread(target=self.on_request, daemon=True).start()
        elif number in ENDING and time.monotonic() - self._first_s > REPEAT_S:
            end_at_once(number, self.on_end)


def _nothing() -> None:
    """Nothing is to be done."""


def ignore_repeats() -> None:
    """Ignore all stop signals: the process is ending, and a repeated one must not change its exit code."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
