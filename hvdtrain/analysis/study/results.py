"""What every study of checkpoints is asked for, and the files in which it answers."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvdtrain.analysis.study.images import Choice
from hvdtrain.analysis.study.opened import Opened
from hvdtrain.analysis.study.subject import Subject
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Request:
    """What every study of checkpoints is asked for."""

    paths: Sequence[Path]
    """Checkpoints, or runs, of which the newest one is taken."""
    overrides: list[str]
    choice: Choice
    output: Path
    """Folder of the results, made on rank 0."""
    seed: int = 0
    dry_run: bool = False
    """Only measure one evaluation, and say what all would take."""
    overwrite: bool = False


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


def check_request(request: Request, comm: Comm) -> None:
    """Raise ConfigError or ResourceError, on all ranks, for what can be refused at once."""
    with together(comm):
        choice = request.choice
        if choice.images < 1 or choice.batch < 1:
            raise ConfigError(
                f"--images {choice.images} --batch {choice.batch}: expected at least 1 of each"
            )
        if request.dry_run or comm.rank > 0:
            return
        output = request.output
        if output.exists() and not output.is_dir():
            raise ResourceError(f"--output {output}: not a folder; name another")
        if output.is_dir() and any(output.iterdir()) and not request.overwrite:
            raise ResourceError(
                f"--output {output}: has files; name another folder, or replace its results with "
                "--overwrite"
            )


def write_results(
    request: Request,
    comm: Comm,
    results: Results,
    table: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Figure],
) -> None:
    """Write NAME.json, NAME.csv with the rows of `table`, and each figure as PNG and SVG, on rank 0.

    Raises ResourceError, on all ranks, if the disk refuses.
    """
    with together(comm):
        if comm.rank == 0:
            try:
                request.output.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ResourceError(
                    f"--output {request.output}: cannot be written: {error.strerror}"
                ) from None
            stem = request.output / results.study
            text = json.dumps(results.as_dict(), indent=1)
            write_atomically(stem.with_suffix(".json"), text.encode())
            write_atomically(stem.with_suffix(".csv"), _csv(table).encode())
            for name, figure in figures.items():
                for kind in ("png", "svg"):
                    drawn = io.BytesIO()
                    figure.savefig(drawn, format=kind, dpi=140)
                    write_atomically(request.output / f"{name}.{kind}", drawn.getvalue())


def _csv(table: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _finite(value: Any) -> Any:
    """`value` with None for every number that JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
