"""Groups of runs that differ in their seeds only, and the settings in which groups differ."""

from __future__ import annotations

import statistics
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hvdtrain.analysis.compare.facts import BATCH, PARTS_OF_BATCH, SEED, Fact
from hvdtrain.analysis.compare.figures import Figure
from hvdtrain.analysis.compare.runs import One
from hvdtrain.analysis.spread import Spread, spread
from hvdtrain.config.overrides import printable
from hvdtrain.errors import ConfigError
from hvdtrain.report.text import MISSING

_NAMED = 3  # differences in the name of a group
_VALUES = 4  # of a setting in one cell


@dataclass(frozen=True)
class Group:
    """Runs that count as repetitions of one setting."""

    letter: str
    name: str
    """What tells it from the others, such as lr.base=0.1."""
    runs: tuple[One, ...]

    @property
    def label(self) -> str:
        """For legends and tables."""
        return f"{self.letter}: {self.name}"

    @property
    def counted(self) -> list[One]:
        """Runs whose results count."""
        return [run for run in self.runs if run.counted]

    def eligible(self, figure: Figure) -> list[One]:
        """The runs that may have a figure."""
        return self.counted if figure.whole else list(self.runs)

    def by_seed(self, figure: Figure) -> dict[str, float]:
        """One value for each seed: the mean of its runs, of those that have the figure."""
        found: dict[str, list[float]] = {}
        for run in self.eligible(figure):
            if (value := run.figures.get(figure.key)) is not None:
                found.setdefault(run.seed, []).append(value)
        return {seed: statistics.fmean(values) for seed, values in found.items()}

    def of(self, figure: Figure) -> Spread | None:
        """Over seeds for what a seed has once, else over runs."""
        if figure.quality:
            return spread(self.by_seed(figure).values())
        return spread(run.figures.get(figure.key) for run in self.eligible(figure))

    def text(self, figure: Figure) -> str:
        """That as text."""
        runs = self.eligible(figure)
        return figure.text(self.of(figure), len({r.seed for r in runs} if figure.quality else runs))

    def values(self, key: str) -> list[str]:
        """The values that its runs have of a setting, each once."""
        found = {run.facts.values[key].value for run in self.runs if key in run.facts.values}
        missing = any(key not in run.facts.values for run in self.runs)
        return [*sorted(found), *([MISSING] if missing else [])]


class Difference(NamedTuple):
    """A setting that is not the same in all runs, with its value in each group."""

    key: str
    machine: bool
    """Whether it only says on what and how the runs ran."""
    cells: list[str]
    within: bool
    """Whether it also differs within a group."""


def groups_of(runs: Sequence[One], by: Sequence[str] = ()) -> list[Group]:
    """Groups in the order of their first runs.

    Two runs are in one group if all that is not the seed, the name or a machine setting is the same; with
    `by` if these settings are. Raises ConfigError for a setting that no run has.
    """
    _require_known(runs, by)
    found: dict[tuple[tuple[str, str], ...], list[One]] = {}
    for run in runs:
        found.setdefault(_key(run, by), []).append(run)
    letters = [_letters(number) for number in range(len(found))]
    members = list(found.values())
    names = _names(members, by)
    return [Group(*each) for each in zip(letters, names, map(tuple, members), strict=True)]


def _require_known(runs: Sequence[One], by: Sequence[str]) -> None:
    known = {key for run in runs for key in run.facts.values}
    for key in by:
        if key == SEED:
            raise ConfigError("--group-by seed: runs of one group differ in their seeds")
        if key not in known:
            raise ConfigError(
                f"--group-by {printable(key)}: no run has it: expected fields of the config such as "
                "lr.base, or ranks"
            )


def _key(run: One, by: Sequence[str]) -> tuple[tuple[str, str], ...]:
    values = run.facts.values
    if by:
        return tuple((key, values[key].value if key in values else MISSING) for key in by)
    return tuple(sorted((k, fact.value) for k, fact in values.items() if fact.kind == "setting"))


def _letters(number: int) -> str:
    """A … Z, AA, AB, …"""
    letters = string.ascii_uppercase
    return letters[number] if number < 26 else _letters(number // 26 - 1) + letters[number % 26]


def _names(members: Sequence[Sequence[One]], by: Sequence[str]) -> list[str]:
    """What differs between the groups; the global batch instead of what makes it up, if it differs."""
    firsts = [group[0].facts.values for group in members]
    keys = [key for key in _keys(firsts) if key in by] if by else _keys(firsts)
    differ = [
        key
        for key in keys
        if (by or any(key in f and f[key].kind in ("setting", "derived") for f in firsts))
        and len({f[key].value if key in f else MISSING for f in firsts}) > 1
    ]
    if BATCH in differ:
        differ = [key for key in differ if not PARTS_OF_BATCH.fullmatch(key)]
    differ = _telling(differ, firsts)
    names = []
    for values in firsts:
        parts = [f"{key}={_short(values[key].value)}" for key in differ if key in values]
        more = f", and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
        names.append(", ".join(parts[:_NAMED]) + more or ("all" if len(firsts) == 1 else MISSING))
    return names


def _telling(keys: Sequence[str], firsts: Sequence[Mapping[str, Fact]]) -> list[str]:
    """`keys`, first those that tell most groups apart beyond the ones before."""
    left, chosen = list(keys), list[str]()

    def told_apart(key: str) -> int:
        of = [*chosen, key]
        return len({tuple(f[k].value if k in f else MISSING for k in of) for f in firsts})

    while left:
        best = max(left, key=told_apart)  # of equal ones the first
        left.remove(best)
        chosen.append(best)
    return chosen


def _short(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:37]}…"


def _keys(values: Sequence[Mapping[str, Fact]]) -> list[str]:
    return [*dict.fromkeys(key for each in values for key in each)]


def differences(groups: Sequence[Group]) -> list[Difference]:
    """All settings that differ between any two runs, those of the machine last."""
    runs = [run for group in groups for run in group.runs]
    found = []
    for key in _keys([run.facts.values for run in runs]):
        kinds = {run.facts.values[key].kind for run in runs if key in run.facts.values}
        columns = [group.values(key) for group in groups]
        if "name" in kinds or len({value for column in columns for value in column}) < 2:
            continue
        cells = [
            ", ".join(column[:_VALUES]) + (", …" if len(column) > _VALUES else "")
            for column in columns
        ]
        within = any(len(column) > 1 for column in columns)
        found.append(Difference(key, kinds == {"machine"}, cells, within))
    return sorted(found, key=lambda each: each.machine)
