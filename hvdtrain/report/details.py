"""What a report tells of one run alone: notes, attempts, plan, bad images, environment."""

from __future__ import annotations

import shlex
from itertools import zip_longest

from hvdtrain.report.events import number
from hvdtrain.report.html import Html, details, run_label, section, table, tag
from hvdtrain.report.plan import plan_of
from hvdtrain.report.run import RunRecord
from hvdtrain.report.text import MISSING, count, duration, when

LISTED = 200
"""Lines of a long list that the page shows; the run directory has them all."""


def alone(run: RunRecord, index: int, titled: bool) -> Html:
    """What has no place in a comparison."""
    plan = plan_of(run)
    parts = [
        tag("h3", "Notes") + _notes(run) if run.notes else "",
        tag("h3", "Attempts") + _attempts(run),
        tag("h3", "Plan") + (tag("pre", plan) if "\n" in plan else tag("p", plan, "quiet")),
        tag("h3", "Bad images") + _bad_samples(run) if run.bad_samples else "",
        tag("h3", "Checkpoints") + _checkpoints(run) if run.checkpoints else "",
        tag("h3", "Environment") + _environment(run),
    ]
    title = run_label(index, run.label) if titled else "Details"
    return section(title, *(Html(part) for part in parts))


def _notes(run: RunRecord) -> Html:
    rows = []
    for note in run.notes[-LISTED:]:
        text = str(note.get("text"))
        cell = tag("span", text, "warn") if text.startswith("warning") else text
        rows.append([when(note["time"]), cell])
    return table(["time", "note"], rows)


def _attempts(run: RunRecord) -> Html:
    rows = [
        [
            f"{when(attempt.began)}",
            duration(attempt.seconds),
            _span(attempt.first_epoch, attempt.last_epoch),
            count(attempt.world_size),
            count(attempt.nodes),
            "run finished" if attempt.finished else "stopped" if following else "not told",
        ]
        for attempt, following in zip_longest(run.attempts, run.attempts[1:])
    ]
    return table(["start", "wall time", "epochs", "ranks", "nodes", "end"], rows)


def _span(first: float | None, last: float | None) -> str:
    return MISSING if first is None or last is None else f"{first:.2f}–{last:.2f}"


def _bad_samples(run: RunRecord) -> Html:
    reasons: dict[str, int] = {}
    for bad in run.bad_samples:
        reason = str(bad.get("reason"))
        reasons[reason] = reasons.get(reason, 0) + 1
    counted = ", ".join(f"{number_} {reason}" for reason, number_ in sorted(reasons.items()))
    rows = [[str(b.get(k, "")) for k in ("name", "reason", "detail")] for b in run.bad_samples]
    title = f"{len(run.bad_samples):,} bad training images: {counted}"
    return details(title, table(["image", "reason", "detail"], rows[:LISTED]))


def _checkpoints(run: RunRecord) -> Html:
    seconds = [s for event in run.checkpoints if (s := number(event, "seconds")) is not None]
    rows = [
        [
            when(event["time"]),
            count(number(event, "step")),
            duration(number(event, "seconds")),
            str(event.get("path", "")),
        ]
        for event in run.checkpoints
    ]
    title = f"{len(rows)} written"
    if seconds:
        title += f" in {duration(sum(seconds))}, the slowest in {duration(max(seconds))}"
    return details(title, table(["time", "step", "took", "path"], rows[-LISTED:]))


def _environment(run: RunRecord) -> Html:
    found = dict(run.environment)
    command, versions = found.pop("command", None), found.pop("versions", None)
    rows = [[key.replace("_", " "), str(value)] for key, value in found.items() if value != ""]
    if isinstance(versions, dict):
        rows.append(["versions", ", ".join(f"{name} {v}" for name, v in versions.items())])
    if isinstance(command, list):
        rows.append(["command", shlex.join(map(str, command))])
    rows.append(["directory", str(run.paths.root)])
    return table(["", ""], rows)
