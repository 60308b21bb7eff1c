"""Reads a run directory for a report: its attempts, training intervals and evaluations.

Directories of older versions and of killed runs are read as far as possible: keys may be missing,
lines may be damaged, and only `events.jsonl` must exist.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvdtrain.errors import ResourceError
from hvdtrain.paths import RunPaths
from hvdtrain.report.events import (
    Event,
    interval_s,
    number,
    read_lines,
    read_mapping,
    split,
    surviving,
    whole,
)


@dataclass(frozen=True)
class Attempt:
    """The part of a run from one start to its end, or to its last event; times are Unix seconds."""

    began: float
    ended: float
    world_size: int | None
    nodes: int | None
    first_epoch: float | None
    last_epoch: float | None
    finished: bool
    """Whether the run was complete at the end of this attempt."""

    @property
    def seconds(self) -> float:
        """Wall time from start to end."""
        return self.ended - self.began


@dataclass(frozen=True)
class Point:
    """One training interval or evaluation; sums are over all steps up to it."""

    values: Event
    epoch: float
    samples: float
    """Training images used, all ranks."""
    train_s: float
    """Time of the training steps only."""
    wall_s: float
    """Time since the run's first start, pauses between attempts included."""
    seconds: float
    """Training time of this interval; 0 for an evaluation."""
    began_at: float
    """Epochs done when this interval began."""
    attempt: int


@dataclass
class RunRecord:
    """Contents of a run directory. `label` is unique among the runs of one report."""

    paths: RunPaths
    label: str
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    attempts: list[Attempt]
    train: list[Point]
    evals: list[Point]
    checkpoints: list[Event]
    changes: list[Event]
    """Settings that changed from one attempt to the next, each with the time of its attempt."""
    notes: list[Event]
    bad_samples: list[Event]
    damaged_lines: int
    redone_s: float
    """Training time of steps made before a restart and made again after it."""

    @property
    def name(self) -> str:
        """The run's name, or the name of its directory."""
        return str(self.config.get("name") or self.paths.root.resolve().name)

    @property
    def classes(self) -> list[str]:
        """Their names in the order of their numbers; empty for a run of an old version."""
        try:
            content = self.paths.classes.read_bytes()
        except OSError:
            return []
        return content.decode("utf-8", "replace").removesuffix("\n").split("\n")

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return bool(self.summary) or any(attempt.finished for attempt in self.attempts)

    @property
    def wall_s(self) -> float:
        """From the first start to the last event, pauses included."""
        return offsets(self.attempts)[-1] + self.attempts[-1].seconds

    @property
    def last(self) -> Point | None:
        """The last training interval, or the last evaluation of a run that has none."""
        points = self.train or self.evals
        return points[-1] if points else None


def offsets(attempts: list[Attempt]) -> list[float]:
    """The start of each attempt, in seconds since the first one's.

    Within an attempt times are those of a steady clock. Between two the clock of the machine may have
    been set back, or the machine be another: a pause is never negative.
    """
    begun = [0.0]
    for before, after in itertools.pairwise(attempts):
        begun.append(begun[-1] + before.seconds + max(0.0, after.began - before.ended))
    return begun


def read_run(root: Path) -> RunRecord:
    """Read the run directory `root`; raises ResourceError if it is none, or has no events."""
    paths = RunPaths(root)
    if not paths.events.is_file():
        raise ResourceError(
            f"{root}: not a run directory: it has no events.jsonl; "
            "name a directory that hvdtrain train has made"
        )
    events, damaged = read_lines(paths.events)
    timed = [event for event in events if number(event, "time") is not None]
    damaged += len(events) - len(timed)
    if not timed:
        why = f"all {damaged} lines of it are damaged" if damaged else "it is empty"
        raise ResourceError(f"{paths.events}: no event to report: {why}")
    has_bad = paths.bad_samples.is_file()
    bad_samples, bad_damaged = read_lines(paths.bad_samples) if has_bad else ([], 0)
    groups = split(timed)
    attempts = [_attempt(group) for group in groups]
    kept, redone_s = surviving(groups)
    train, evals = _points(kept, attempts)
    return RunRecord(
        paths=paths,
        label=root.resolve().name,
        config=read_mapping(paths.config),
        environment=read_mapping(paths.environment),
        summary=read_mapping(paths.summary),
        attempts=attempts,
        train=train,
        evals=evals,
        checkpoints=[event for group in groups for event in group if event["kind"] == "checkpoint"],
        changes=[change for group in groups for change in _changes(group)],
        notes=[event for group in groups for event in group if event["kind"] == "note"],
        bad_samples=bad_samples,
        damaged_lines=damaged + bad_damaged,
        redone_s=redone_s,
    )


def _changes(group: list[Event]) -> list[Event]:
    """The changed settings of an attempt."""
    start = next((event for event in group if event["kind"] == "start"), {})
    changes = start.get("changes")
    return [
        {**change, "time": start["time"]}
        for change in (changes if isinstance(changes, list) else [])
        if isinstance(change, dict)
    ]


def time_before(path: Path) -> tuple[int, float]:
    """The number of attempts in the log of a run, and their wall time together in seconds.

    To be called before the next attempt writes its start.
    """
    timed = [event for event in read_lines(path)[0] if number(event, "time") is not None]
    groups = [group for group in split(timed) if any(event["kind"] == "start" for event in group)]
    return len(groups), sum(_attempt(group).seconds for group in groups)


def _attempt(group: list[Event]) -> Attempt:
    """Start and end of an attempt. Notes do not count, since they may belong to the next attempt."""
    decisive = [event for event in group if event["kind"] != "note"] or group
    started = next((event for event in group if event["kind"] == "start"), {})
    ended = next((event for event in group if event["kind"] == "end"), {})
    first = decisive[0]
    length = {"start": "setup_seconds", "train": "seconds", "end": "wall_seconds"}
    began = [first["time"] - (number(first, length.get(first["kind"], "")) or 0.0)]
    began += [
        event["time"] - (number(event, length[event["kind"]]) or 0.0)
        for event in (started, ended)
        if event
    ]
    epochs = [value for event in decisive if (value := number(event, "epoch")) is not None]
    return Attempt(
        began=min(began),
        ended=max(decisive[-1]["time"], min(began)),
        world_size=whole(started, "world_size") or whole(ended, "world_size"),
        nodes=whole(started, "nodes"),
        first_epoch=epochs[0] if epochs else None,
        last_epoch=epochs[-1] if epochs else None,
        finished=bool(ended),
    )


def _points(
    kept: list[tuple[int, Event]], attempts: list[Attempt]
) -> tuple[list[Point], list[Point]]:
    """Training intervals and evaluations, each with the sums up to it."""
    points = list(_walk(kept, attempts))
    train = [point for point in points if point.values["kind"] == "train"]
    evals = [point for point in points if point.values["kind"] == "eval"]
    return train, evals


def _walk(kept: list[tuple[int, Event]], attempts: list[Attempt]) -> Iterator[Point]:
    samples = train_s = epoch = 0.0
    begun = offsets(attempts)
    for attempt, event in kept:
        seconds = interval_s(event) if event["kind"] == "train" else 0.0
        if event["kind"] == "train":
            samples += number(event, "samples") or 0.0
            train_s += seconds
        began_at, reported = epoch, number(event, "epoch")
        epoch = epoch if reported is None else reported
        wall_s = begun[attempt] + max(0.0, event["time"] - attempts[attempt].began)
        yield Point(event, epoch, samples, train_s, wall_s, seconds, began_at, attempt)


def label_by_path(runs: list[RunRecord]) -> None:
    """Give runs whose directories have the same name their path as label."""
    names = [run.label for run in runs]
    for run in runs:
        if names.count(run.label) > 1:
            run.label = str(run.paths.root)
