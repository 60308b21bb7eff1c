"""A comparison of runs as a whole: groups, differences, figures, tests, and what to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvdtrain.analysis.compare.facts import HASH, VAL, VIEWS
from hvdtrain.analysis.compare.figures import QUALITY, Figure, figures_for
from hvdtrain.analysis.compare.groups import Difference, Group, differences, groups_of
from hvdtrain.analysis.compare.pairs import HOW, Pair, pairs_of
from hvdtrain.analysis.compare.runs import One, notes_of, read_runs
from hvdtrain.config.overrides import printable
from hvdtrain.errors import ConfigError
from hvdtrain.report.targets import Target


@dataclass(frozen=True)
class Asked:
    """What is compared, and how."""

    paths: Sequence[Path]
    metrics: Sequence[str] = ()
    """Keys of the figures that are tested; none: those of quality."""
    targets: Sequence[Target] = ()
    group_by: Sequence[str] = ()
    """Settings that tell groups apart; none: all but seed, name and machine settings."""
    unfinished: bool = False
    """Whether results of unfinished runs count."""


@dataclass(frozen=True)
class Comparison:
    """What there is to show."""

    groups: list[Group]
    differences: list[Difference]
    figures: list[Figure]
    """Those that some group has."""
    pairs: list[Pair]
    notes: list[str]
    group_by: tuple[str, ...] = ()
    """Settings that tell groups apart, if they were asked for."""

    @property
    def runs(self) -> list[One]:
        """All, by group."""
        return [run for group in self.groups for run in group.runs]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "group_by": list(self.group_by),
            "groups": [_group(group, self.figures) for group in self.groups],
            "runs": [_run(run, group) for group in self.groups for run in group.runs],
            "differences": [each._asdict() for each in self.differences],
            "tests": [pair.as_dict() for pair in self.pairs],
            "how": HOW,
            "notes": self.notes,
        }

    def run_rows(self) -> list[dict[str, Any]]:
        """A line for each run."""
        rows = []
        for group in self.groups:
            for run in group.runs:
                known = {f.key: run.figures.get(f.key) for f in self.figures}
                about = _run(run, group)
                del about["figures"]
                rows.append({**about, **known})
        return rows

    def group_rows(self) -> list[dict[str, Any]]:
        """A line for each figure of each group."""
        return [
            {"group": group.letter, "name": group.name, "figure": figure.key, **vars(value)}
            for group in self.groups
            for figure in self.figures
            if (value := group.of(figure))
        ]


def _group(group: Group, figures: Sequence[Figure]) -> dict[str, Any]:
    values = {figure.key: vars(v) for figure in figures if (v := group.of(figure))}
    about = {"group": group.letter, "name": group.name, "runs": [run.label for run in group.runs]}
    return {**about, "counted": [run.label for run in group.counted], "figures": values}


def _run(run: One, group: Group) -> dict[str, Any]:
    return {
        "run": run.label,
        "group": group.letter,
        "name": run.record.name,
        "path": str(run.record.paths.root),
        "seed": run.facts.seed,
        "state": run.state,
        "counted": run.counted,
        "figures": run.figures,
    }


def compare(asked: Asked) -> Comparison:
    """Read the runs and compare them. Raises ConfigError and ResourceError, as `read_runs` does."""
    figures = figures_for(asked.targets)
    tested = _tested(figures, asked.metrics)
    runs = read_runs(asked.paths, asked.targets, unfinished=asked.unfinished)
    groups = groups_of(runs, asked.group_by)
    differ = differences(groups)
    kept = [figure for figure in figures if any(group.of(figure) for group in groups)]
    notes = [
        *(note for run in runs for note in notes_of(run)),
        *_notes_on_groups(groups, asked),
        *_notes_on_differences(differ, groups),
    ]
    pairs = pairs_of(groups, tested)
    return Comparison(groups, differ, kept, pairs, notes, tuple(asked.group_by))


def _tested(figures: Sequence[Figure], metrics: Sequence[str]) -> list[Figure]:
    by_key = {figure.key: figure for figure in figures}
    for name in metrics:
        if name not in by_key:
            raise ConfigError(f"--metric {printable(name)}: expected one of {', '.join(by_key)}")
    return [by_key[name] for name in dict.fromkeys(metrics or QUALITY)]


def _notes_on_groups(groups: Sequence[Group], asked: Asked) -> list[str]:
    notes = []
    how = "counted as it stands" if asked.unfinished else "counts in no result"
    for group in groups:
        left = [f"{r.label} ({_stand(r)}, {how})" for r in group.runs if r.state != "finished"]
        if left:
            more = f", … ({len(left)} runs)" if len(left) > 5 else ""
            notes.append(f"{group.letter}: {', '.join(left[:5])}{more}")
        seeds = [run.seed for run in group.runs]
        if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            notes.append(
                f"{group.letter}: seed {', '.join(twice)} ran more than once: a seed counts once, with "
                "the mean of its runs"
            )
    states = {run.state for group in groups for run in group.runs}
    if "unfinished" in states and not asked.unfinished:
        notes.append(
            "a mean without runs that failed because of their setting is too good; --unfinished counts "
            "unfinished runs as they stand"
        )
    return notes


def _stand(run: One) -> str:
    epoch = run.figures.get("epochs")
    return run.state if epoch is None else f"{run.state} at epoch {epoch:.4g}"


def _notes_on_differences(differ: Sequence[Difference], groups: Sequence[Group]) -> list[str]:
    notes = []
    mixed = [each.key for each in differ if each.within and not each.machine]
    if mixed:
        notes.append(f"within a group also differ: {', '.join(mixed[:10])}")
    if any(each.key == VIEWS for each in differ):
        notes.append(
            f"{VIEWS} differs: results are means over other views of each validation image, so a difference "
            "says nothing about the weights alone; hvdtrain eval RUN train.val_views=one evaluates them alike"
        )
    runs = [run for group in groups for run in group.runs]
    if any(run.facts.held_out for run in runs):
        notes.append(
            "validation images are held out by the seed: each seed has its own, and a part of the "
            "spread comes from that"
        )
    elif any(not f.value.startswith(HASH) for r in runs if (f := r.facts.values.get(VAL))):
        notes.append("which validation images were used is not recorded, only how many")
    return notes
