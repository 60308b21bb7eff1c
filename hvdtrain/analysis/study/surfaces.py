"""What the loss is like around the weights that the members of a study ended with.

Each measurement is a command `hvdtrain study sharpness | interpolate | landscape` with a folder of its
own; what is there already is never measured again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hvdtrain.analysis.study.asked import Member
from hvdtrain.analysis.study.folder import Folder
from hvdtrain.analysis.study.gradients import best_checkpoint
from hvdtrain.analysis.study.processes import (
    Command,
    Processes,
    Progress,
    Stopped,
    last_line,
    shown_code,
)
from hvdtrain.errors import HvdtrainError, Preempted
from hvdtrain.report.events import read_mapping
from hvdtrain.report.text import duration

MEASURES = ("sharpness", "noise-scale", "interpolate", "landscape")
"""The commands, whose results go by their names."""
LINE, SIDE = 41, 21
"""Points of a landscape along one direction, and along each side of a plane."""
BETWEEN = 31
"""Points of a line between two members, α from -1 to 2: 0 and 1 are among them."""
Say = Callable[[str], None]
Values = list[float | None]


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Place(_Read):
    name: str
    """Of run and checkpoint."""


class Box(_Read):
    """One sharpness."""

    epsilon: float
    value: float


class Sharpness(_Place):
    """What `study sharpness` found at one checkpoint."""

    sharpness: Annotated[list[Box], Field(min_length=1)]


class _Estimate(_Read):
    scale: float | None


class NoiseScale(_Place):
    """What `study noise-scale` found at one checkpoint."""

    measured: _Estimate


class Line(_Place):
    """The loss between two checkpoints, or along one random direction."""

    axes: Annotated[list[list[float]], Field(min_length=1, max_length=1)]
    loss: Values
    to: _Place | None = None


class Plane(_Place):
    """The loss along two random directions, [first, second]."""

    axes: Annotated[list[list[float]], Field(min_length=2, max_length=2)]
    loss: list[Values]


Found = Sharpness | NoiseScale | Line | Plane


@dataclass(frozen=True)
class Task:
    """One measurement."""

    name: str
    measure: str
    members: tuple[str, ...]
    """One, or two of a line."""
    checkpoints: tuple[Path, ...]
    words: tuple[str, ...]
    evaluations: int
    """Passes over the images, about."""
    answer: type[Found]


@dataclass
class Around:
    """What was found, by the names of members."""

    sharpness: dict[str, dict[float, float]] = field(default_factory=dict)
    """By ε."""
    noise: dict[str, float | None] = field(default_factory=dict)
    """In images; None where noise hides the signal."""
    between: dict[tuple[str, str], Line] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)
    planes: dict[str, Plane] = field(default_factory=dict)


@dataclass(frozen=True)
class Surfaces:
    """The measurements of the study `folder` over `images` training images."""

    folder: Folder
    measures: Sequence[str]
    images: int
    seed: int
    """The first one of the study."""
    threads: int
    """Of each command: other numbers give other last digits."""

    def tasks(self, finished: Sequence[Member], say: Say) -> list[Task]:
        """Of members that are finished and have not diverged: sharpness and noise scale of all, lines and
        landscapes of those of the first seed. A member whose checkpoints cannot be read is one line, and left out."""
        best: dict[str, Path] = {}
        for member in finished:
            try:
                best[member.name] = best_checkpoint(self.folder.run(member.name))
            except HvdtrainError as error:
                if self.measures:
                    say(f"{member.name}: nothing measured: {error}")
        first = [m.name for m in finished if m.seed == self.seed and m.name in best]
        return _tasks(self.measures, best, first)

    def left(self, tasks: Sequence[Task]) -> list[Task]:
        """Those of which there is no result."""
        return [task for task in tasks if self.result(task) is None]

    def measure(self, tasks: Sequence[Task], processes: Processes, say: Say) -> Stopped:
        """Run what is left of `tasks`. A failure is one line; the same call tries it again."""
        left = {task.name: task for task in self.left(tasks)}
        done: list[int] = []
        whole = sum(task.evaluations for task in left.values())
        began, progress = time.monotonic(), Progress()

        def ended(name: str, code: int) -> bool:
            done.append(left[name].evaluations)
            if code == Preempted.exit_code:
                return True
            if code or self.result(left[name]) is None:
                say(
                    f"{name}: not measured: exit code {shown_code(code)}: "
                    f"{last_line(self._log(name))}"
                )
            return False

        def watch(running: list[str], _waiting: int) -> None:
            text = f"measuring {', '.join(running) or 'nothing'}, {len(done)} of {len(left)}"
            if made := sum(done):
                seconds = (time.monotonic() - began) * (whole - made) / made
                text += f", {duration(round(seconds))} left"
            progress.enter(text)

        commands = [
            Command(name, self._words(task), self._log(name)) for name, task in left.items()
        ]
        return replace(processes, watch=watch, ready=lambda _name: True).run(
            commands, lambda _name: None, ended
        )

    def found(self, tasks: Sequence[Task]) -> Around:
        """What there is."""
        around = Around()
        for task in tasks:
            found = self.result(task)
            if isinstance(found, Sharpness):
                around.sharpness[task.members[0]] = {b.epsilon: b.value for b in found.sharpness}
            elif isinstance(found, NoiseScale):
                around.noise[task.members[0]] = found.measured.scale
            elif isinstance(found, Plane):
                around.planes[task.members[0]] = found
            elif found is not None and len(task.members) == 2:
                around.between[task.members[0], task.members[1]] = found
            elif found is not None:
                around.lines[task.members[0]] = found
        return around

    def result(self, task: Task) -> Found | None:
        """None if there is none, if it cannot be read, or if it is of other checkpoints."""
        content = read_mapping(self._output(task.name) / f"{task.measure}.json")
        checkpoints = content.get("found" if task.answer is NoiseScale else "checkpoints")
        if not isinstance(checkpoints, list) or len(checkpoints) != 1:
            return None
        try:
            found = task.answer.model_validate(checkpoints[0])
        except ValidationError:
            return None
        names = [found.name]
        if isinstance(found, Line) and found.to is not None:
            names.append(found.to.name)
        shapes_fit = not isinstance(found, Line | Plane) or _fits(found)
        return found if shapes_fit and names == [*map(_place, task.checkpoints)] else None

    def _output(self, name: str) -> Path:
        return self.folder.root / "surfaces" / f"{self.images}-images" / name

    def _log(self, name: str) -> Path:
        return self._output(name).with_suffix(".log")

    def _words(self, task: Task) -> list[str]:
        paths = [str(path.absolute()) for path in task.checkpoints]
        how = [f"train.compute_threads={self.threads}", "--images", str(self.images)]
        output = ["--output", str(self._output(task.name)), "--overwrite"]
        return ["study", task.measure, *paths, *how, *task.words, *output]


def evaluations(measures: Sequence[str], members: Sequence[Member]) -> int:
    """Passes over the images, about, for all that `measures` would have of `members`."""
    here = Path()
    best = {member.name: here for member in members}
    first = [m.name for m in members if m.seed == min(each.seed for each in members)]
    return sum(task.evaluations for task in _tasks(measures, best, first))


def _tasks(measures: Sequence[str], best: dict[str, Path], first: Sequence[str]) -> list[Task]:
    """`best`: the checkpoint of each member; `first`: the members of the first seed."""
    found: list[Task] = []
    for measure in measures:
        if measure == "sharpness":
            found += [_sharpness(name, path) for name, path in best.items()]
        elif measure == "noise-scale":
            found += [_noise_scale(name, path) for name, path in best.items()]
        elif measure == "interpolate":
            found += [_between(*pair, best) for pair in itertools.combinations(first, 2)]
        else:
            found += [_along(name, best[name], dims) for name in first for dims in (1, 2)]
    return found


def _sharpness(name: str, path: Path) -> Task:
    words = ("--subspace", "0")
    return Task(f"sharpness-{name}", "sharpness", (name,), (path,), words, 120, Sharpness)


def _noise_scale(name: str, path: Path) -> Task:
    return Task(f"noise-scale-{name}", "noise-scale", (name,), (path,), (), 6, NoiseScale)


def _between(first: str, second: str, best: dict[str, Path]) -> Task:
    name, words = f"interpolate-{first}-to-{second}", ("--points", str(BETWEEN))
    paths = (best[first], best[second])
    return Task(name, "interpolate", (first, second), paths, words, BETWEEN, Line)


def _along(name: str, path: Path, dims: int) -> Task:
    points, what = ((LINE, "line"), (SIDE, "plane"))[dims - 1]
    words = ("--dims", str(dims), "--points", str(points))
    answer = Line if dims == 1 else Plane
    return Task(
        f"landscape-{what}-{name}", "landscape", (name,), (path,), words, points**dims, answer
    )


def _place(checkpoint: Path) -> str:
    """The name that results have for it."""
    path = checkpoint.resolve()
    return f"{path.parents[1].name} {path.name}"


def _fits(found: Line | Plane) -> bool:
    """Whether there is a loss for each point."""
    if len(found.loss) != len(found.axes[0]):
        return False
    return isinstance(found, Line) or all(len(row) == len(found.axes[1]) for row in found.loss)
