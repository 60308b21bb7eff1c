"""Trains the members of a study in processes of their own, some at once, so that all can be gone on with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hvdtrain.analysis.study.asked import Member
from hvdtrain.analysis.study.folder import Folder
from hvdtrain.analysis.study.processes import Command, Processes, last_line, shown_code
from hvdtrain.checkpoint_files import list_checkpoints, read_meta
from hvdtrain.errors import CheckpointError, Preempted, ResourceError, TrainingError
from hvdtrain.paths import RunPaths
from hvdtrain.report.events import number, read_mapping
from hvdtrain.run.lock import RunLock

DRIVER = Path("/proc/driver/nvidia/gpus")


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
    processes: Processes
    say: Callable[[str], None]
    watch: Callable[[list[Member], int], None] = lambda _running, _left: None

    def train(self, members: list[Member]) -> Outcome:
        """Train those that are not finished. A signal to stop is passed on to those that run, which write
        a checkpoint; `stopped` is then set."""
        done = Outcome()
        diverged = self.folder.read().get("diverged", {})
        left = {m.name: m for m in members if not self.finished(m) and m.name not in diverged}
        commands = [
            Command(name, self.words(member), self.folder.log(name), member.ranks)
            for name, member in left.items()
        ]
        begun = 0

        def begin(name: str) -> None:
            nonlocal begun
            begun += 1
            self.say(f"{name}: {begun} of {len(left)}")

        def ended(name: str, code: int) -> bool:
            self._ended(left[name], code, done)
            return done.stopped

        def ready(name: str) -> bool:
            return self._free(left[name])

        def watch(running: list[str], waiting: int) -> None:
            self.watch([left[name] for name in running], waiting)

        processes = replace(self.processes, ready=ready, watch=watch)
        end = processes.run(commands, begin, ended)
        done.stopped, done.signalled = end.stopped, end.signalled
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

    def words(self, member: Member) -> list[str]:
        """The command of hvdtrain that trains a member, or goes on with it."""
        train = ["train", str(self.folder.config), *member.settings]
        train += ["--run-dir", str(self.folder.run(member.name)), "--resume", "auto"]
        if member.ranks == 1:
            return train
        return ["launch", "--hosts", f"localhost:{member.ranks}", "--", *train]

    def _free(self, member: Member) -> bool:
        """Whether no process of a killed study trains it still; such a one ends after its checkpoint."""
        root = self.folder.run(member.name)
        if not root.is_dir():
            return True
        with contextlib.suppress(ResourceError):
            RunLock(root).release()
            return True
        return False

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
            done.failed[name] = f"exit code {shown_code(code)}: {line}"
            self.say(f"{name}: failed with {done.failed[name]}")


def gpus_here(env: Mapping[str, str], driver: Path = DRIVER) -> tuple[str, ...]:
    """The GPUs that CUDA shows to this process, as its driver names them; torch is not asked, since it is
    slow to import."""
    if "CUDA_VISIBLE_DEVICES" in env:
        return tuple(filter(None, env["CUDA_VISIBLE_DEVICES"].split(",")))
    count = len(list(driver.iterdir())) if driver.is_dir() else 0
    return tuple(map(str, range(count)))
