"""A launcher that runs: the signals that are passed on to it, its end, and the exit code of the job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from hvdtrain.errors import Preempted
from hvdtrain.signals import ENDING, REPEAT_S, STOPPING

STOP_NOTE = "HVDTRAIN_STOP_NOTE"
"""Variable with HOST:FILE; rank 0 creates the file after it was stopped and wrote a checkpoint."""
TRAINING = ".training"
"""Ending of the name of the file that rank 0 creates when training begins."""
KILLED = 128 + signal.SIGKILL
RANKS = ("OMPI_COMM_WORLD_RANK", "HOROVOD_RANK")
"""One of them is in the environment of a rank that mpirun or horovodrun has started."""
CHILDLESS_S = 0.5
"""A launcher without ranks gets so long for their last lines."""
EARLY = (1, *(128 + number for number in STOPPING))
"""Exit codes of launchers whose ranks were ended by a signal before they trained; 1: the launcher's own."""
RECALL_S = 60.0
"""Time from one question whether to recall a job to the next."""
AGAIN_S = (2.0, 5.0, 10.0)
"""Times after a stop signal at which it is passed on again: mpirun loses one that comes while it starts its
ranks. For them one more changes nothing."""
LOOK_S = 0.25
"""Time from one look at the launcher to the next."""


@dataclass
class Running:
    """A launcher that runs, and the signals that it has had."""

    checkpoint_signal: signal.Signals
    note: Path
    """What rank 0 creates when it has stopped; with `TRAINING` at its end, when it begins."""
    here: bool
    first: float | None = None
    """When the first signal was passed on."""
    told: int = 0
    """The last signal that was passed on."""
    _child: subprocess.Popen[bytes] | None = None
    _early: list[int] = field(default_factory=list)
    """Signals that came before the launcher was started."""
    _again: list[float] = field(default_factory=lambda: list(AGAIN_S))

    @property
    def training(self) -> bool:
        """Training has begun."""
        return self.note.with_name(self.note.name + TRAINING).exists()

    @property
    def ended_early(self) -> bool:
        """A signal ends the ranks before they train."""
        return bool(self.told) and self.here and not self.training

    def begin(self, child: subprocess.Popen[bytes], stopped_before: bool) -> None:
        """The launcher was started; `stopped_before`: see `run_job`."""
        if stopped_before and not self._early:
            self._early.append(self.checkpoint_signal)
        self._child = child
        for number in self._early[:1]:
            self.pass_on(number, None)

    def pass_on(self, number: int, _: FrameType | None) -> None:
        """Handle a signal to this process."""
        if self._child is None:
            self._early.append(number)
        elif self.first is None:
            self.first, self.told = time.monotonic(), number
            if sys.stderr.isatty():  # the cursor is at the end of the ranks' bar
                os.write(2, b"\n")
            self._ask(self._child)
        elif number in ENDING and time.monotonic() - self.first > REPEAT_S:
            self.told = number
            self._child.send_signal(signal.SIGTERM)

    def wait(self, child: subprocess.Popen[bytes], recall: Callable[[], bool] | None) -> bool:
        """Wait until the launcher has ended; whether it was asked to because `recall` says so.

        A signal is passed on again if it may be lost. mpirun would wait for ten seconds after ranks that a
        signal has ended early: when it has no processes any more, it is killed.
        """
        recalled, asked = False, time.monotonic()
        childless: float | None = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(LOOK_S)
                return recalled
            now = time.monotonic()
            if self.first is not None and self._again and now > self.first + self._again[0]:
                self._again.pop(0)
                if not self.training:
                    self._ask(child, again=True)
            if recall is not None and not recalled and now > asked + RECALL_S:
                recalled, asked = recall() and child.poll() is None, now
                if recalled:
                    self._ask(child)
            if not self.ended_early or _has_children(child.pid):
                childless = None
            elif childless is None:
                childless = now
            elif now > childless + CHILDLESS_S:
                child.kill()

    def _ask(self, child: subprocess.Popen[bytes], *, again: bool = False) -> None:
        """Ask the ranks to stop in order: through the launcher, but horovodrun, which does not pass SIGTERM on, is
        passed by where the ranks are processes of this host."""
        by_hand = self.checkpoint_signal == signal.SIGTERM
        if by_hand and self.here and (ranks := ranks_below(child.pid)):
            for rank in ranks:
                with contextlib.suppress(psutil.Error):
                    rank.send_signal(signal.SIGUSR1)
        elif not (by_hand and again):  # a second SIGTERM would end it at once
            child.send_signal(self.checkpoint_signal)

    def code(self, code: int) -> int:
        """The exit code of the job, by that of the launcher."""
        code = code if code >= 0 else 128 - code
        if self.note.exists():
            return Preempted.exit_code
        if self.told and (code in EARLY or (code == KILLED and self.ended_early)):
            return 128 + self.told
        return code


def ranks_below(pid: int) -> list[psutil.Process]:
    """The ranks among the processes that a launcher has started on this host."""
    found = []
    try:
        started = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    for process in started:
        with contextlib.suppress(psutil.Error):
            words = process.environ()
            parent = process.parent()
            above = parent.environ() if parent is not None else {}
            if _is_rank(words) and not _is_rank(above):
                found.append(process)
    return found


def _is_rank(env: Mapping[str, str]) -> bool:
    return STOP_NOTE in env and any(name in env for name in RANKS)


def _has_children(pid: int) -> bool:
    """Whether a process has children that live; True if that cannot be known."""
    try:
        found = psutil.Process(pid).children()
        return any(each.status() != psutil.STATUS_ZOMBIE for each in found)
    except psutil.Error:
        return True
