"""What every study of checkpoints is asked for, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvdtrain.analysis.study.images import Choice
from hvdtrain.analysis.study.opened import Opened
from hvdtrain.run.subject import Subject


@dataclass(frozen=True)
class Request:
    """What every study of checkpoints is asked for."""

    paths: Sequence[Path]
    """Checkpoints, or runs, of which the newest one is taken."""
    overrides: list[str]
    choice: Choice
    seed: int = 0
    dry_run: bool = False
    """Only measure one batch, and say what all would take."""


@dataclass
class Results:
    """The numbers of one study, the same on every rank."""

    study: str
    seed: int
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float | None = None
    """What the study would take; only with `dry_run`."""

    def add(self, subject: Subject, it: Opened, numbers: Mapping[str, Any]) -> None:
        """One more checkpoint."""
        self.checkpoints.append({**subject.about, **it.about, **numbers})
        self.warnings += [line for line in it.warnings if line not in self.warnings]

    def add_seconds(self, subject: Subject, it: Opened, seconds: float) -> None:
        """One more checkpoint that would take so long."""
        self.seconds = (self.seconds or 0.0) + seconds
        self.add(subject, it, {"seconds": seconds})

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not finite are null."""
        about = {"study": self.study, "seed": self.seed, **self.settings}
        if self.seconds is not None:
            about["dry_run_seconds"] = self.seconds
        found: dict[str, Any] = _finite({**about, "checkpoints": self.checkpoints})
        return {**found, "warnings": self.warnings}


def _finite(value: Any) -> Any:
    """`value` with None for every number that JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
