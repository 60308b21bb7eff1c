"""Run a launcher as a child process: pass on stop signals, wait, and return its exit code."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

from hvdtrain.errors import Preempted, ResourceError
from hvdtrain.launch.note_folder import note_folder
from hvdtrain.launch.output import Copy
from hvdtrain.launch.running import STOP_NOTE, TRAINING, Running
from hvdtrain.signals import stopping_signals


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
        job = Running(checkpoint_signal, folder / "stopped", here)
        noted = {**env, STOP_NOTE: f"{socket.gethostname()}:{job.note}"}
        sys.stdout.flush()
        before: dict[signal.Signals, Any] = {
            n: signal.signal(n, job.pass_on) for n in stopping_signals()
        }
        try:
            return _run(job, command, noted, stopped_before, endings, recall)
        except OSError as error:
            raise ResourceError(f"{command[0]}: cannot be started: {error.strerror}") from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _run(
    job: Running,
    command: Sequence[str],
    env: Mapping[str, str],
    stopped_before: Callable[[], bool],
    endings: Sequence[Ending],
    recall: Callable[[], bool] | None,
) -> Ended:
    # A terminal sends Ctrl-C to its whole foreground group, as others do, and mpirun would end at once.
    # In a batch job the group stays as it is, because Slurm may track processes by it.
    child = subprocess.Popen(
        [*ended_with_this_process(command[0]), *command],
        env=env,
        start_new_session=sys.stdin.isatty() or "SLURM_JOB_ID" not in env,
        stdout=None if sys.stdout.isatty() else subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    copies = [Copy(child.stdout, 1), Copy(child.stderr, 2, lambda: job.first is not None)]
    for line, seconds, ending in endings:
        copies[1].then(line, Timer(seconds, child.send_signal, [ending]))
    job.begin(child, stopped_before())
    recalled = job.wait(child, recall)
    code = job.code(child.wait())
    for copy in copies:
        copy.finish(show_held=code not in (Preempted.exit_code, 128 + job.told))
    return Ended(code, job.first is not None, tuple(copies[1].last), recalled)


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
