"""Run a launcher as a child process: pass on stop signals, wait, and return its exit code."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

from hvdtrain.errors import Preempted, ResourceError
from hvdtrain.launch.note_folder import note_folder
from hvdtrain.signals import ENDING, REPEAT_S, stopping_signals

STOP_NOTE = "HVDTRAIN_STOP_NOTE"
"""Variable with HOST:FILE; rank 0 creates the file after it was stopped and wrote a checkpoint."""
COPY_S = 5.0
"""Time for the last output after the command has ended; a process it left behind may keep it open."""


def _ended_with_this_process(program: str) -> list[str]:
    """The words before `program` that let it get SIGTERM when this process ends, even if killed."""
    setpriv = shutil.which("setpriv")  # of util-linux
    return [setpriv, "--pdeathsig", "TERM"] if setpriv and shutil.which(program) else []


def _copied(source: IO[bytes] | None, target: int) -> threading.Thread:
    """A thread that copies `source` to a descriptor, and reads on when nobody reads that any more.

    mpirun would abort when it cannot write.
    """

    def copy() -> None:
        broken = False
        with source or contextlib.nullcontext():
            while source is not None and (text := os.read(source.fileno(), 1 << 16)):
                while text and not broken:
                    try:
                        text = text[os.write(target, text) :]
                    except OSError:
                        broken = True

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    """Its exit code, or 128 + n if signal n killed it."""
    signalled: bool
    """This process had a signal to stop meanwhile."""


def run_job(
    command: Sequence[str],
    env: Mapping[str, str],
    checkpoint_signal: signal.Signals,
    stopped_before: Callable[[], bool] = lambda: False,
) -> Ended:
    """Start `command` and wait for its end.

    When this process gets SIGTERM, SIGUSR1, SIGINT or SIGHUP, the command gets `checkpoint_signal` and
    passes it on, so that the ranks write a checkpoint and stop. A second SIGTERM or SIGINT more than
    `REPEAT_S` later sends SIGTERM. `stopped_before`: whether such a signal came before this call. If
    rank 0 noted that it stopped after a checkpoint, the exit code is that of Preempted. Raises
    ResourceError if the command cannot be started.
    """
    with note_folder() as folder:
        noted = {**env, STOP_NOTE: f"{socket.gethostname()}:{folder / 'stopped'}"}
        code, signalled = _run(command, noted, checkpoint_signal, stopped_before)
        if (folder / "stopped").exists():
            code = Preempted.exit_code
    return Ended(code, signalled)


def _run(
    command: Sequence[str],
    env: Mapping[str, str],
    checkpoint_signal: signal.Signals,
    stopped_before: Callable[[], bool],
) -> Ended:
    waiting: list[int] = []  # signals that came before the child was started
    child: subprocess.Popen[bytes] | None = None
    first: float | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal first
        if child is None:
            waiting.append(number)
        elif first is None:
            first = time.monotonic()
            if sys.stderr.isatty():  # the cursor is at the end of the ranks' bar
                os.write(2, b"\n")
            child.send_signal(checkpoint_signal)
        elif number in ENDING and time.monotonic() - first > REPEAT_S:
            child.send_signal(signal.SIGTERM)

    sys.stdout.flush()
    before: dict[signal.Signals, Any] = {n: signal.signal(n, pass_on) for n in stopping_signals()}
    try:
        # A terminal sends Ctrl-C to its whole foreground group, and mpirun would end at once. In a
        # batch job the group stays as it is, because Slurm may track processes by it.
        child = subprocess.Popen(
            [*_ended_with_this_process(command[0]), *command],
            env=env,
            start_new_session=sys.stdin.isatty(),
            stdout=None if sys.stdout.isatty() else subprocess.PIPE,
            stderr=None if sys.stderr.isatty() else subprocess.PIPE,
        )
        copies = [_copied(child.stdout, 1), _copied(child.stderr, 2)]
        if stopped_before() and not waiting:
            waiting.append(checkpoint_signal)
        for number in waiting[:1]:
            pass_on(number, None)
        code = child.wait()
        for copy in copies:
            copy.join(COPY_S)
    except OSError as error:
        raise ResourceError(f"{command[0]}: cannot be started: {error.strerror}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return Ended(code if code >= 0 else 128 - code, first is not None)


def note_stop(env: Mapping[str, str]) -> bool:
    """Note on rank 0, for the `run_job` that started it on this host, that it stopped in order.

    The launcher's exit code does not say so: Slurm signals all processes of a job, and a launcher
    whose daemons were stopped ends with its own code. Returns whether the note could be made.
    """
    with contextlib.suppress(OSError):
        if noted_here(env):
            Path(env[STOP_NOTE].partition(":")[2]).touch()
            return True
    return False


def noted_here(env: Mapping[str, str]) -> bool:
    """Whether a `run_job` on this host started this process."""
    return env.get(STOP_NOTE, "").partition(":")[0] == socket.gethostname()


def ask(*command: str) -> str:
    """Standard output of a short command. Raises ResourceError with the last line it printed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ResourceError(f"{' '.join(command)}: {error}") from None
    if done.returncode != 0:
        last_line = (done.stderr or done.stdout).strip().split("\n")[-1]
        raise ResourceError(f"{' '.join(command)}: {last_line}")
    return done.stdout


def own_command() -> list[str]:
    """The command that starts this program on all machines, by a path that is the same on each."""
    script = Path(sys.executable).with_name("hvdtrain")
    if os.access(script, os.X_OK):
        return [str(script)]
    return [sys.executable, "-m", "hvdtrain"]
