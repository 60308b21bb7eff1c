"""The runs that are compared, read from their directories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hvdtrain.analysis.compare.facts import Facts, facts_of
from hvdtrain.analysis.compare.figures import measure
from hvdtrain.errors import ConfigError
from hvdtrain.paths import run_root
from hvdtrain.report.run import RunRecord, label_by_path, read_run
from hvdtrain.report.targets import Target
from hvdtrain.run.lock import in_use
from hvdtrain.run.recorded import About, recorded_images

State = Literal["finished", "training", "unfinished"]


@dataclass(frozen=True)
class One:
    """One run, as it stands."""

    record: RunRecord
    state: State
    facts: Facts
    about: About
    figures: dict[str, float]
    """By key, those that it has."""
    counted: bool
    """Whether its results count: it is finished, or those of unfinished runs are asked for."""

    @property
    def label(self) -> str:
        """Unique among the runs."""
        return self.record.label

    @property
    def seed(self) -> str:
        """Equal for runs of one seed; a run whose seed is not known is like no other."""
        return f"of {self.label}" if self.facts.seed is None else str(self.facts.seed)


def read_runs(paths: Sequence[Path], targets: Sequence[Target], *, unfinished: bool) -> list[One]:
    """The runs in the order in which they are named.

    Raises ConfigError if they are fewer than two or one is named twice, ResourceError if one is no run.
    """
    roots: dict[Path, Path] = {}
    for path in paths:
        root = run_root(path)
        if (first := roots.get(root.resolve())) is not None:
            same = "" if first == path else f", as {first} and {path}"
            raise ConfigError(f"{path}: the same run twice{same}: name each run once")
        roots[root.resolve()] = path
    if len(roots) < 2:
        raise ConfigError(
            f"{paths[0]}: one run: expected two or more to compare; hvdtrain report shows one"
        )
    records = [read_run(run_root(path)) for path in roots.values()]
    label_by_path(records)
    return [read_one(record, targets, unfinished=unfinished) for record in records]


def read_one(record: RunRecord, targets: Sequence[Target], *, unfinished: bool) -> One:
    """What there is to compare of a run."""
    about, state = recorded_images(record.paths), _state(record)
    return One(
        record,
        state,
        facts_of(record, about),
        about,
        measure(record, targets),
        counted=unfinished or state == "finished",
    )


def _state(record: RunRecord) -> State:
    if record.attempts[-1].finished or record.summary:  # a run that goes on loses its summary
        return "finished"
    return "training" if in_use(record.paths.root) else "unfinished"


def notes_of(one: One) -> list[str]:
    """What to know of a run before its figures are believed."""
    notes = []
    if one.facts.fault:
        notes.append(f"{one.label}: {one.facts.fault}")
    if one.record.damaged_lines:
        notes.append(f"{one.label}: damaged lines left out: {one.record.damaged_lines}")
    if changes := [c for c in one.record.changes if c.get("kind") == "plan"]:
        texts = "; ".join(
            f"{c.get('setting')} {c.get('before')} → {c.get('after')}" for c in changes
        )
        notes.append(f"{one.label}: changed in mid-run: {texts[:300]}")
    return notes
