"""Run a launcher as a child process: pass on stop signals, wait, and return its exit code."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Timer
from types import FrameType
from typing import Any, NamedTuple

from hvdtrain.errors import Preempted, ResourceError
from hvdtrain.launch.note_folder import note_folder
from hvdtrain.launch.output import Copy
from hvdtrain.signals import ENDING, REPEAT_S, STOPPING, stopping_signals

STOP_NOTE = "HVDTRAIN_STOP_NOTE"
"""Variable with HOST:FILE; rank 0 creates the file after it was stopped and wrote a checkpoint."""
TRAINING = ".training"
"""Ending of the name of the file that rank 0 creates when training begins."""
KILLED = 128 + signal.SIGKILL
CHILDLESS_S = 0.5
"""A launcher without ranks gets so long for their last lines."""
EARLY = (1, *(128 + number for number in STOPPING))
"""Exit codes of launchers whose ranks were ended by a signal before they trained; 1: the launcher's own."""


def ended_with_this_process(program: str) -> list[str]:
    """The words before `program` that let it get SIGTERM when this process ends, even if killed."""
    setpriv = shutil.which("setpriv")  # of util-linux
    return [setpriv, "--pdeathsig", "TERM"] if setpriv and shutil.which(program) else []


class Ending(NamedTuple):
    """What follows when a launcher says that its ranks end."""

    line: str
    """Regular expression of the beginning of the line."""
    seconds: float
    signal: signal.Signals
    """The launcher gets it so many seconds later."""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    """Its exit code, or 128 + n if signal n killed it."""
    signalled: bool
    """This process had a signal to stop meanwhile."""
    errors: tuple[str, ...] = ()
    """The last lines of its standard error."""
    recalled: bool = False
    """It was asked to stop for the sake of another attempt."""


RECALL_S = 60.0
"""Time from one question whether to recall a job to the next."""
AGAIN_S = (2.0, 5.0, 10.0)
"""Times after a stop signal at which it is passed on again: mpirun loses one that comes while it starts its
ranks. For them one more changes nothing."""
LOOK_S = 0.25
"""Time from one look at the launcher to the next."""


def run_job(
    command: Sequence[str],
    env: Mapping[str, str],
    checkpoint_signal: signal.Signals,
    stopped_before: Callable[[], bool] = lambda: False,
    endings: Sequence[Ending] = (),
    recall: Callable[[], bool] | None = None,
    here: bool = False,
) -> Ended:
    """Start `command` and wait for its end.

    When this process gets SIGTERM, SIGUSR1, SIGINT or SIGHUP, the command gets `checkpoint_signal` and
    passes it on, so that the ranks write a checkpoint and stop. A second SIGTERM or SIGINT more than
    `REPEAT_S` later sends SIGTERM. `stopped_before`: whether such a signal came before this call. If
    rank 0 noted that it stopped after a checkpoint, the exit code is that of Preempted; if the signal
    ended the ranks without one, 128 + its number. `endings`: signals for the command after a line of its
    standard error. `recall`: asked every `RECALL_S` whether the command shall stop as after a signal.
    `here`: all ranks are on this host. Raises ResourceError if the command cannot be started.
    """
    with note_folder() as folder:
        noted = {**env, STOP_NOTE: f"{socket.gethostname()}:{folder / 'stopped'}"}
        stopped = (folder / "stopped").exists
        training = (folder / f"stopped{TRAINING}").exists
        return _run(
            *(command, noted, checkpoint_signal, stopped_before, stopped, training),
            *(endings, recall, here),
        )


def _run(
    command: Sequence[str],
    env: Mapping[str, str],
    checkpoint_signal: signal.Signals,
    stopped_before: Callable[[], bool],
    stopped: Callable[[], bool],
    training: Callable[[], bool],
    endings: Sequence[Ending],
    recall: Callable[[], bool] | None,
    here: bool,
) -> Ended:
    waiting: list[int] = []  # signals that came before the child was started
    child: subprocess.Popen[bytes] | None = None
    first: float | None = None
    told = 0  # the last signal that was passed on

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal first, told
        if child is None:
            waiting.append(number)
        elif first is None:
            first, told = time.monotonic(), number
            if sys.stderr.isatty():  # the cursor is at the end of the ranks' bar
                os.write(2, b"\n")
            child.send_signal(checkpoint_signal)
        elif number in ENDING and time.monotonic() - first > REPEAT_S:
            told = number
            child.send_signal(signal.SIGTERM)

    sys.stdout.flush()
    before: dict[signal.Signals, Any] = {n: signal.signal(n, pass_on) for n in stopping_signals()}
    try:
        # A terminal sends Ctrl-C to its whole foreground group, as others do, and mpirun would end at once.
        # In a batch job the group stays as it is, because Slurm may track processes by it.
        child = subprocess.Popen(
            [*ended_with_this_process(command[0]), *command],
            env=env,
            start_new_session=sys.stdin.isatty() or "SLURM_JOB_ID" not in env,
            stdout=None if sys.stdout.isatty() else subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        copies = [Copy(child.stdout, 1), Copy(child.stderr, 2, lambda: first is not None)]
        for line, seconds, ending in endings:
            copies[1].then(line, Timer(seconds, child.send_signal, [ending]))
        if stopped_before() and not waiting:
            waiting.append(checkpoint_signal)
        for number in waiting[:1]:
            pass_on(number, None)
        again = [] if checkpoint_signal == signal.SIGTERM else list(AGAIN_S)

        def look() -> None:
            if first is not None and again and time.monotonic() > first + again[0]:
                again.pop(0)
                if not training():
                    child.send_signal(checkpoint_signal)

        def over() -> bool:
            return bool(told) and here and not training()

        recalled = _waited(child, recall, checkpoint_signal, over, look)
        code = child.wait()
        code = code if code >= 0 else 128 - code
        if stopped():
            code = Preempted.exit_code
        elif told and (code in EARLY or (code == KILLED and over())):
            code = 128 + told
        for copy in copies:
            copy.finish(show_held=code not in (Preempted.exit_code, 128 + told))
    except OSError as error:
        raise ResourceError(f"{command[0]}: cannot be started: {error.strerror}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return Ended(code, first is not None, tuple(copies[1].last), recalled)


def _waited(
    child: subprocess.Popen[bytes],
    recall: Callable[[], bool] | None,
    checkpoint_signal: signal.Signals,
    over: Callable[[], bool],
    look: Callable[[], None],
) -> bool:
    """Wait until the child has ended, and `look` meanwhile; whether it was asked to because `recall` says so.

    When it is `over` and the child has no processes any more, it is killed: mpirun would wait for ten seconds
    after ranks that a signal has ended.
    """
    recalled, asked = False, time.monotonic()
    childless: float | None = None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(LOOK_S)
            return recalled
        look()
        now = time.monotonic()
        if recall is not None and not recalled and now > asked + RECALL_S:
            recalled, asked = recall() and child.poll() is None, now
            if recalled:
                child.send_signal(checkpoint_signal)
        if not over() or _has_children(child.pid):
            childless = None
        elif childless is None:
            childless = now
        elif now > childless + CHILDLESS_S:
            child.kill()


def _has_children(pid: int) -> bool:
    """Whether a process has children that live; True if that cannot be known."""
    import psutil

    try:
        found = psutil.Process(pid).children()
        return any(each.status() != psutil.STATUS_ZOMBIE for each in found)
    except psutil.Error:
        return True


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


def note_training(env: Mapping[str, str]) -> None:
    """Note on rank 0, for the `run_job` that started it on this host, that a stop is from now on an orderly one."""
    with contextlib.suppress(OSError):
        if noted_here(env):
            Path(env[STOP_NOTE].partition(":")[2] + TRAINING).touch()


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
