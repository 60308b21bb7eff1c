"""The files of a comparison: a page, its pictures, and the numbers as CSV and JSON."""

from __future__ import annotations

from pathlib import Path

from hvdtrain.analysis.compare.comparison import Comparison
from hvdtrain.analysis.compare.page import about, sections_of
from hvdtrain.analysis.spread import csv_text
from hvdtrain.errors import ResourceError
from hvdtrain.files import write_atomically
from hvdtrain.report.study import write_study
from hvdtrain.telemetry.reports import json_text

PAGE = "compare.html"


def write_comparison(found: Comparison, folder: Path) -> Path:
    """Write all files to `folder`; the page's path. Raises ResourceError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"--output {folder}: cannot be written: {error.strerror}") from None
    tables = {
        "runs.csv": found.run_rows(),
        "groups.csv": found.group_rows(),
        "tests.csv": [pair.as_dict() for pair in found.pairs],
    }
    for name, rows in tables.items():
        write_atomically(folder / name, csv_text(rows).encode("utf-8", errors="replace"))
    content = json_text(found.as_dict(), indent=1)
    write_atomically(folder / "compare.json", content.encode("utf-8", errors="replace"))
    page = folder / PAGE
    title = f"{len(found.runs)} runs compared"
    write_study(
        page, folder / "pictures", title, about(found), sections_of(found), kind="comparison"
    )
    return page
