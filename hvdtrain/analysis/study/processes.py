"""Commands of hvdtrain in processes of their own, some at once, as a study runs them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hvdtrain import activity
from hvdtrain.errors import ResourceError
from hvdtrain.launch.job import ended_with_this_process, own_command
from hvdtrain.signals import StopSignals

POLL_S = 0.2
LINE_S = 30.0
LAST_BYTES = 4096
"""Of the log of a command that failed: the error is its last line."""


class Progress:
    """A line of progress that a terminal rewrites; a log of hours has one every LINE_S."""

    def __init__(self) -> None:
        self._shown = 0.0

    def enter(self, text: str) -> None:
        """What is done now."""
        now = time.monotonic()
        if now - self._shown >= LINE_S:
            self._shown = now
        elif now - self._shown > 2 * activity.INTERVAL_S and not activity.watched(os.environ):
            activity.shown()
        activity.enter(text)


@dataclass(frozen=True)
class Command:
    """One command of hvdtrain."""

    name: str
    words: Sequence[str]
    """What follows `hvdtrain`."""
    log: Path
    """Its output is added to this file."""
    ranks: int = 1


@dataclass(frozen=True)
class Stopped:
    """Whether all commands ran."""

    stopped: bool
    """Not all: by a signal or the end of the time."""
    signalled: bool


@dataclass
class Processes:
    """Runs commands, at most `jobs` at once."""

    jobs: int
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)
    gpus: tuple[str, ...] = ()
    """Those of this machine: commands that run at once have different ones."""
    until: Callable[[], bool] = lambda: False
    """Whether the time is over."""
    watch: Callable[[list[str], int], None] = lambda _running, _left: None
    """Called while it waits, with the names of what runs and the number of what waits."""
    ready: Callable[[str], bool] = lambda _name: True
    """Whether the command of this name may start."""

    def run(
        self,
        commands: Sequence[Command],
        begun: Callable[[str], None],
        ended: Callable[[str, int], bool],
    ) -> Stopped:
        """Run all; a signal to stop is passed on to those that run.

        `begun(name)` is called before a command starts, `ended(name, code)` after it; it returns whether
        the command was stopped rather than done.
        """
        left = list(commands)
        running: dict[str, subprocess.Popen[bytes]] = {}
        slots: dict[int, str] = {}
        stopped = ending = signalled = False
        with StopSignals() as signals:
            while left or running:
                if (signals.requested or self.until()) and not ending:
                    stopped, ending, signalled = True, True, signals.requested
                    left.clear()
                    for process in running.values():
                        process.terminate()
                while left and len(running) < self.jobs and self.ready(left[0].name):
                    command = left.pop(0)
                    begun(command.name)
                    slot = next(n for n in range(self.jobs) if slots.get(n) not in running)
                    slots[slot] = command.name
                    running[command.name] = self._start(command, slot)
                for name, process in [*running.items()]:
                    if (code := process.poll()) is not None:
                        del running[name]
                        stopped |= ended(name, code)
                self.watch([*running], len(left))
                time.sleep(POLL_S)
        return Stopped(stopped, signalled)

    def env_of(self, ranks: int, slot: int) -> dict[str, str]:
        """The environment, with the GPUs of one of `jobs` slots."""
        if not self.gpus or self.jobs == 1:
            return dict(self.env)
        first = slot * ranks
        own = [self.gpus[(first + i) % len(self.gpus)] for i in range(ranks)]
        return {**self.env, "CUDA_VISIBLE_DEVICES": ",".join(own)}

    def _start(self, command: Command, slot: int) -> subprocess.Popen[bytes]:
        words = [*own_command(), *command.words]
        try:
            command.log.parent.mkdir(parents=True, exist_ok=True)
            with command.log.open("ab") as output:
                return subprocess.Popen(
                    [*ended_with_this_process(words[0]), *words],
                    env=self.env_of(command.ranks, slot),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C comes to this process, which passes it on
                )
        except OSError as error:
            place = error.filename or command.log
            raise ResourceError(f"{place}: cannot be started: {error.strerror}") from None


def shown_code(code: int) -> int:
    """An exit code as a shell shows it: 128 + n after signal n."""
    return code if code >= 0 else 128 - code


def last_line(log: Path) -> str:
    """The last line of a log, or the last error in it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return f"no log {log}"
    lines = [line for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("hvdtrain: error: ")]
    chosen = (errors or lines or ["it printed nothing"])[-1]
    return chosen.removeprefix("hvdtrain: error: ")
