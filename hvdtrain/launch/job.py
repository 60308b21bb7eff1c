"""Run a launcher as a child: pass a wish to stop on to the ranks, wait, give its exit code."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hvdtrain.errors import Preempted, ResourceError
from hvdtrain.signals import REPEAT_S, STOPPING

STOP_NOTE = "HVDTRAIN_STOP_NOTE"
"""HOST:FILE that rank 0 makes when it was stopped and has written a checkpoint."""


def run_job(
    command: Sequence[str], env: Mapping[str, str], checkpoint_signal: signal.Signals
) -> int:
    """Start `command` and wait; returns its exit code, 128 + n if signal n killed it.

    On SIGTERM, SIGUSR1 or SIGINT it gets `checkpoint_signal`, which it passes on, so that ranks write a
    checkpoint; on another one more than `REPEAT_S` later SIGTERM. If rank 0 told of an orderly
    stop, the code is that of Preempted. Raises ResourceError.
    """
    waiting: list[int] = []  # signals that came before there was a child
    folder = Path(tempfile.mkdtemp(prefix="hvdtrain-launch-"))
    env = {**env, STOP_NOTE: f"{socket.gethostname()}:{folder / 'stopped'}"}
    child: subprocess.Popen[bytes] | None = None
    first: float | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal first
        if child is None:
            waiting.append(number)
        elif first is None:
            first = time.monotonic()
            child.send_signal(checkpoint_signal)
        elif time.monotonic() - first > REPEAT_S:
            child.send_signal(signal.SIGTERM)

    sys.stdout.flush()
    before: dict[signal.Signals, Any] = {n: signal.signal(n, pass_on) for n in STOPPING}
    try:
        # Ctrl-C goes to all of a terminal's foreground group, and mpirun would end at once. In a
        # batch job the group is how Slurm may know its processes.
        child = subprocess.Popen(command, env=env, start_new_session=sys.stdin.isatty())
        for number in waiting[:1]:
            pass_on(number, None)
        code = child.wait()
        stopped = (folder / "stopped").exists()
    except OSError as error:
        raise ResourceError(f"{command[0]}: cannot be started: {error.strerror}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        shutil.rmtree(folder, ignore_errors=True)
    if code != 0 and stopped:
        return Preempted.exit_code
    return code if code >= 0 else 128 - code


def note_stop(env: Mapping[str, str]) -> None:
    """Rank 0 tells the `run_job` that started it, if it runs here, of its orderly stop.

    Launchers whose daemons were told to end, as Slurm tells all that a job has started, give exit
    codes of their own.
    """
    host, _, path = env.get(STOP_NOTE, "").partition(":")
    if host == socket.gethostname():
        with contextlib.suppress(OSError):
            Path(path).touch()


def ask(*command: str) -> str:
    """Standard output of a short command. Raises ResourceError with its last words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ResourceError(f"{' '.join(command)}: {error}") from None
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().split("\n")[-1]
        raise ResourceError(f"{' '.join(command)}: {words}")
    return done.stdout


def own_command() -> list[str]:
    """How ranks are to start this program: by a path that is the same on all machines."""
    script = Path(sys.executable).with_name("hvdtrain")
    if os.access(script, os.X_OK):
        return [str(script)]
    return [sys.executable, "-m", "hvdtrain"]
