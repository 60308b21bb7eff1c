"""The files in which studies of checkpoints answer: numbers as JSON and CSV, a picture as PNG and SVG."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain import activity
from hvdtrain.analysis.output_folder import require_free
from hvdtrain.analysis.spread import csv_text
from hvdtrain.analysis.study.loss import SUMS
from hvdtrain.analysis.study.results import Results
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.errors import ResourceError
from hvdtrain.files import write_atomically

Row = dict[str, Any]


def check_output(output: Path, comm: Comm, *, overwrite: bool) -> None:
    """Raise ResourceError, on all ranks, if rank 0 finds files in the folder, or no folder."""
    with together(comm):
        if comm.rank == 0:
            require_free(output, overwrite=overwrite)


def write_results(output: Path, comm: Comm, results: Results) -> None:
    """Write STUDY.json, .csv, .png and .svg on rank 0. Raises ResourceError on all ranks."""
    with together(comm):
        if comm.rank == 0:
            activity.enter("drawing")
            try:
                output.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ResourceError(
                    f"--output {output}: cannot be written: {error.strerror}"
                ) from None
            stem = output / results.study
            for ending, data in _files(results):
                write_atomically(stem.with_suffix(ending), data)


def _files(results: Results) -> Iterator[tuple[str, bytes]]:
    """Their endings and contents."""
    from hvdtrain.report.landscapes import figure_of

    yield ".csv", csv_text(TABLES[results.study](results.checkpoints)).encode()
    figure = figure_of(results.study, results.checkpoints)
    for ending in (".png", ".svg"):
        drawn = io.BytesIO()
        figure.savefig(drawn, format=ending[1:], dpi=140)
        yield ending, drawn.getvalue()
    # The last one: where it is, all are.
    yield ".json", json.dumps(results.as_dict(), indent=1).encode()


def _sharpness_rows(checkpoints: list[Row]) -> list[Row]:
    return [{"name": one["name"], **row} for one in checkpoints for row in one["sharpness"]]


def _density_rows(checkpoints: list[Row]) -> list[Row]:
    return [
        {"name": one["name"], "eigenvalue": at, "density": value}
        for one in checkpoints
        for at, value in zip(one["density_at"], one["density"], strict=True)
    ]


def _point_rows(checkpoints: list[Row]) -> list[Row]:
    return [row for one in checkpoints for row in _points_of(one)]


def _points_of(one: Row) -> Iterator[Row]:
    places = np.meshgrid(*one["axes"], indexing="ij")
    columns = dict(zip(("alpha", "beta"), places, strict=False))
    columns |= {name: np.array(one[name], dtype=np.float64) for name in SUMS}
    for values in zip(*(column.ravel().tolist() for column in columns.values()), strict=True):
        yield {"name": one["name"], **dict(zip(columns, values, strict=True))}


TABLES: dict[str, Callable[[list[Row]], list[Row]]] = {
    "sharpness": _sharpness_rows,
    "interpolate": _point_rows,
    "landscape": _point_rows,
    "hessian": _density_rows,
}
"""The rows of the CSV file of each study."""
