"""Waits until a training is at a moment, by what it writes to its run directory."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

from tests.chaos.cases import END, EVALUATION, MIDDLE, SAVE, SIZE, START
from tests.chaos.job import Job

WAIT_S = 280.0
"""Longest wait for a moment."""
FIRST_EPOCHS = 2
"""Epochs in which faults strike: there are later ones that read every image again."""


class Events:
    """Reads `events.jsonl` while it grows."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / "events.jsonl"
        self._read = 0

    def new(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except OSError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        return [json.loads(line) for line in data.splitlines()]


def all_events(run_dir: Path) -> list[dict[str, Any]]:
    """All events of a run, without damaged lines."""
    try:
        lines = (run_dir / "events.jsonl").read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


class Missed(Exception):
    """The job ended, or took too long, before the moment."""


def wait_for(
    moment: str, job: Job, run_dir: Path, chance: random.Random, evaluation_s: float
) -> str:
    """Wait for `moment` in one of the first epochs; returns where the training is. Raises Missed.

    `evaluation_s`: how long an evaluation takes.
    """
    if moment == START:
        return _start(job, chance)
    epoch, share = chance.randrange(1, FIRST_EPOCHS + 1), chance.uniform(0.2, 0.8)
    events, deadline = Events(run_dir), time.monotonic() + WAIT_S
    while True:
        for event in events.new():
            if event["kind"] == "train" and _reached(event, moment, epoch, share):
                return _then(moment, job, run_dir, f"step {event['step']}", share * evaluation_s)
        _still(job, deadline)
        time.sleep(0.001)


def _reached(event: dict[str, Any], moment: str, epoch: int, share: float) -> bool:
    done = event["epoch"]
    if moment == MIDDLE:
        return bool(done > epoch + share)
    if moment == SIZE:
        return bool(event["phase"] > 0)
    if moment == SAVE:
        return bool(done > epoch - 1 + share)
    assert moment in (END, EVALUATION)
    return bool(done >= epoch)


def _then(moment: str, job: Job, run_dir: Path, place: str, evaluation_s: float) -> str:
    if moment == EVALUATION:
        time.sleep(evaluation_s)
    if moment == SAVE:
        deadline = time.monotonic() + WAIT_S
        while not any((run_dir / "checkpoints").glob(".e*.part")):
            _still(job, deadline)
            time.sleep(0.0002)
    return place


def _start(job: Job, chance: random.Random) -> str:
    deadline = time.monotonic() + WAIT_S
    while len(job.ranks()) < job.ranks_wanted:
        _still(job, deadline)
        time.sleep(0.01)
    wait_s = chance.uniform(0, 4)
    time.sleep(wait_s)
    return f"{wait_s:.1f} s after the start"


def _still(job: Job, deadline: float) -> None:
    if job.process.poll() is not None:
        raise Missed(f"the job had ended with {job.process.returncode}")
    if time.monotonic() > deadline:
        raise Missed("the moment did not come")
