"""The events of a run: read from the log, split into attempts, without the steps that were lost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hvdtrain.errors import ResourceError

Event = dict[str, Any]


def number(values: Event, key: str) -> float | None:
    """A finite number, or None for anything else."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def whole(values: Event, key: str) -> int | None:
    """A whole number of at least one, or None for anything else."""
    value = number(values, key)
    return int(value) if value is not None and value >= 1 else None


def read_lines(path: Path) -> tuple[list[Event], int]:
    """The objects of a file of JSON lines, and the number of damaged lines."""
    objects, damaged = [], 0
    if path.exists() and not path.is_file():  # a device or pipe may never end
        return [], 0
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ResourceError(f"{path}: cannot be read: {error.strerror}") from None
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            value["kind"] = str(value.get("kind"))
            objects.append(value)
        else:
            damaged += 1
    return objects, damaged


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file; empty if there is none or the file is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def split(events: list[Event]) -> list[list[Event]]:
    """The events of each attempt; a start, a resume or steps that go back begin a new one.

    A resumed attempt writes its notes before its start.
    """
    groups: list[list[Event]] = [[]]
    seen: set[str] = set()
    step = 0.0
    for event in events:
        kind = event["kind"]
        resumed = kind == "note" and str(event.get("text")).startswith("resumed from ")
        steps = kind in ("train", "eval")
        begins = (
            (kind == "start" and ("start" in seen or "train" in seen or "eval" in seen))
            or (resumed and ("resumed" in seen or "train" in seen or "eval" in seen))
            or (steps and _step_before(event) < step)
        )
        if begins and groups[-1]:
            groups.append([])
            seen, step = set(), 0.0
        groups[-1].append(event)
        seen.add("resumed" if resumed else kind)
        step = (number(event, "step") or 0.0) if steps else step
    return groups


class Restarts(NamedTuple):
    """How often a run was interrupted."""

    by_signal: int
    by_crash: int


def restarts(path: Path) -> Restarts:
    """Count the interruptions in the log of a run, before its next attempt writes its start."""
    attempts = [
        kinds
        for group in split(read_lines(path)[0])
        if "start" in (kinds := {event["kind"] for event in group}) and "end" not in kinds
    ]
    by_signal = sum("stop" in kinds for kinds in attempts)
    return Restarts(by_signal, len(attempts) - by_signal)


def evaluated(path: Path, step: int) -> bool:
    """Whether the log of a run has an evaluation after that step."""
    if not path.exists():
        return False
    events = read_lines(path)[0]
    return any(event["kind"] == "eval" and event.get("step") == step for event in events)


def surviving(groups: list[list[Event]]) -> tuple[list[tuple[int, Event]], float]:
    """Training intervals and evaluations that led to the run's end, each with its attempt.

    Steps after the checkpoint from which a later attempt resumed are lost; that attempt makes them
    again. The second value is the training time of the lost steps in seconds.
    """
    kept: list[tuple[int, Event]] = []
    redone_s = 0.0
    for index, group in enumerate(groups):
        events = [event for event in group if event["kind"] in ("train", "eval")]
        if not events:
            continue
        begin = _step_before(events[0])
        lost = [event for _i, event in kept if (number(event, "step") or 0.0) > begin]
        redone_s += sum(interval_s(event) for event in lost if event["kind"] == "train")
        kept = [(i, event) for i, event in kept if (number(event, "step") or 0.0) <= begin]
        kept += [(index, event) for event in events]
    return kept, redone_s


def _step_before(event: Event) -> float:
    """The step at which an interval or evaluation began."""
    step = number(event, "step") or 0.0
    if event["kind"] == "eval":
        return step
    seconds, each = number(event, "seconds"), number(event, "step_seconds")
    if seconds is not None and each:
        return step - round(seconds / each)
    samples, batch = number(event, "samples"), number(event, "global_batch_size")
    return step - (math.ceil(samples / batch) if samples is not None and batch else 1)


def interval_s(event: Event) -> float:
    """Length of a training interval in seconds."""
    seconds = number(event, "seconds")
    if seconds is not None:
        return seconds
    samples, speed = number(event, "samples"), number(event, "images_per_second")
    return samples / speed if samples is not None and speed else 0.0
