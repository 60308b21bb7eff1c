"""Trains the members of a study in processes of their own, some at once, so that all can be gone on with."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hvdtrain.analysis.study.asked import Member
from hvdtrain.analysis.study.folder import Folder
from hvdtrain.checkpoint_files import list_checkpoints, read_meta
from hvdtrain.errors import CheckpointError, Preempted, ResourceError, TrainingError
from hvdtrain.launch.job import ended_with_this_process, own_command
from hvdtrain.paths import RunPaths
from hvdtrain.report.events import number, read_mapping
from hvdtrain.run.lock import RunLock
from hvdtrain.signals import StopSignals

POLL_S = 0.2
DRIVER = Path("/proc/driver/nvidia/gpus")
LAST_BYTES = 4096
"""Of the log of a member that failed: the error is its last line."""


@dataclass
class Outcome:
    """How members ended in this call."""

    finished: list[str] = field(default_factory=list)
    diverged: dict[str, str] = field(default_factory=dict)
    """Their loss is not finite: a result, which is not trained for again."""
    failed: dict[str, str] = field(default_factory=dict)
    """By name, one line for each."""
    stopped: bool = False
    """Not all were trained: by a signal or the end of the time."""
    signalled: bool = False


@dataclass
class Trainer:
    """Trains members of the study `folder`; `say` prints a line, `watch` is called while it waits."""

    folder: Folder
    jobs: int
    say: Callable[[str], None]
    watch: Callable[[list[Member], int], None] = lambda _running, _left: None
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)
    gpus: tuple[str, ...] = ()
    """Those of this machine: members that train at once have different ones."""
    until: Callable[[], bool] = lambda: False
    """Whether the study's time is over."""

    def train(self, members: list[Member]) -> Outcome:
        """Train those that are not finished. A signal to stop is passed on to those that run, which write
        a checkpoint; `stopped` is then set."""
        done = Outcome()
        diverged = self.folder.read().get("diverged", {})
        left = [m for m in members if not self.finished(m) and m.name not in diverged]
        total = len(left)
        running: dict[str, tuple[Member, subprocess.Popen[bytes]]] = {}
        slots: dict[int, str] = {}
        with StopSignals() as signals:
            while left or running:
                if (signals.requested or self.until()) and not done.stopped:
                    done.stopped, done.signalled = True, signals.requested
                    left.clear()
                    for _member, process in running.values():
                        process.terminate()
                while left and len(running) < self.jobs and self._free(left[0]):
                    member = left.pop(0)
                    self.say(f"{member.name}: {total - len(left)} of {total}")
                    slot = next(n for n in range(self.jobs) if slots.get(n) not in running)
                    slots[slot] = member.name
                    running[member.name] = member, self._start(member, slot)
                for member, process in [*running.values()]:
                    if (code := process.poll()) is not None:
                        del running[member.name]
                        self._ended(member, code, done)
                self.watch([member for member, _ in running.values()], len(left))
                time.sleep(POLL_S)
        return done

    def finished(self, member: Member) -> bool:
        """Whether a member is complete: it is then never trained again."""
        paths = RunPaths(self.folder.run(member.name))
        if member.epochs is None:
            return paths.summary.exists()
        summary = read_mapping(paths.summary)
        if summary.get("stopped_early"):
            return True
        if (epochs := number(summary, "epochs")) is not None:
            return epochs >= member.epochs
        # It is being trained further, so it was complete at fewer epochs.
        for newest in list_checkpoints(paths.checkpoints)[:1]:
            with contextlib.suppress(CheckpointError):
                return bool(read_meta(newest)["position"]["epoch"] > member.epochs)
        return False

    def command(self, member: Member) -> list[str]:
        """What trains a member, or goes on with it."""
        train = ["train", str(self.folder.config), *member.settings]
        train += ["--run-dir", str(self.folder.run(member.name)), "--resume", "auto"]
        if member.ranks == 1:
            return [*own_command(), *train]
        return [*own_command(), "launch", "--hosts", f"localhost:{member.ranks}", "--", *train]

    def _free(self, member: Member) -> bool:
        """Whether no process of a killed study trains it still; such a one ends after its checkpoint."""
        root = self.folder.run(member.name)
        if not root.is_dir():
            return True
        with contextlib.suppress(ResourceError):
            RunLock(root).release()
            return True
        return False

    def _env(self, member: Member, slot: int) -> dict[str, str]:
        """The environment, with the GPUs of one of `jobs` slots."""
        if not self.gpus or self.jobs == 1:
            return dict(self.env)
        first = slot * member.ranks
        own = [self.gpus[(first + i) % len(self.gpus)] for i in range(member.ranks)]
        return {**self.env, "CUDA_VISIBLE_DEVICES": ",".join(own)}

    def _start(self, member: Member, slot: int) -> subprocess.Popen[bytes]:
        log = self.folder.log(member.name)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                command = self.command(member)
                return subprocess.Popen(
                    [*ended_with_this_process(command[0]), *command],
                    env=self._env(member, slot),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C comes to this process, which passes it on
                )
        except OSError as error:
            place = error.filename or log
            raise ResourceError(f"{place}: cannot be started: {error.strerror}") from None

    def _ended(self, member: Member, code: int, done: Outcome) -> None:
        name = member.name
        if code == 0 and self.finished(member):
            done.finished.append(name)
            self.say(f"{name}: finished")
            return
        line = last_line(self.folder.log(name))
        if code == TrainingError.exit_code:
            done.diverged[name] = line
            known = {**self.folder.read().get("diverged", {}), name: line}
            self.folder.write(diverged=known)
            self.say(f"{name}: diverged: {line}")
        elif code == Preempted.exit_code or done.stopped:
            done.stopped = True
        else:
            done.failed[name] = f"exit code {code if code >= 0 else 128 - code}: {line}"
            self.say(f"{name}: failed with {done.failed[name]}")


def gpus_here(env: Mapping[str, str], driver: Path = DRIVER) -> tuple[str, ...]:
    """The GPUs that CUDA shows to this process, as its driver names them; torch is not asked, since it is
    slow to import."""
    if "CUDA_VISIBLE_DEVICES" in env:
        return tuple(filter(None, env["CUDA_VISIBLE_DEVICES"].split(",")))
    count = len(list(driver.iterdir())) if driver.is_dir() else 0
    return tuple(map(str, range(count)))


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
