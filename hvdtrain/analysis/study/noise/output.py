"""The files of `hvdtrain study noise-scale`: page, pictures, JSON and three CSV tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvdtrain import activity
from hvdtrain.analysis.spread import csv_text
from hvdtrain.analysis.study.noise.answers import Found, Results
from hvdtrain.analysis.study.noise.nodes import Answer
from hvdtrain.analysis.study.noise.words import assumptions, verdict
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.errors import ResourceError
from hvdtrain.files import write_atomically
from hvdtrain.scaling.ends import keys
from hvdtrain.scaling.tables import late_ranks_allow
from hvdtrain.telemetry.reports import json_text

Row = dict[str, Any]
MEASURED = (
    *("checkpoint", "epoch", "sample", "step", "images", "batches", "loss", "trace", "trace_error"),
    *("square", "square_error", "scale", "low", "high"),
)
"""What a table has of a checkpoint."""


def as_dict(results: Results) -> dict[str, Any]:
    """For JSON: times in seconds, batches in images, shares in 0-1."""
    found: dict[str, Any] = {"study": "noise-scale"}
    if results.seconds is not None:
        found["dry_run_seconds"] = results.seconds
    found["found"] = [_found(each) for each in results.found]
    return {**found, "assumptions": assumptions(results), "warnings": results.warnings}


def _found(found: Found) -> Row:
    recorded = found.recorded
    return {
        "name": found.name,
        "path": str(found.path),
        "recorded": None if recorded is None else [part.as_dict() for part in recorded.parts()],
        "measured": found.measured or None,
        "trade_off": None if found.trade_off is None else found.trade_off.as_dict(),
        "worker": found.speed or None,
        "links": [_answer(answer) for answer in found.answers],
    }


def _answer(answer: Answer) -> Row:
    return {
        "link_gbit": answer.link_gbit,
        "verdict": verdict(answer),
        "now": answer.own.as_dict(),
        "advised": {
            **answer.advised.as_dict(),
            **keys("faster", answer.faster(answer.advised)),
            "faster_within_interval": answer.bounds,
            **keys("node_hours_over_now", answer.dearer(answer.advised)),
        },
        "cheapest": answer.cheapest.as_dict(),
        "fastest": [
            {**offer.as_dict(), "saved": saved}
            for offer, saved in zip(answer.fastest, answer.saved, strict=True)
        ],
        "same_share": [offer.as_dict() for offer in answer.same_share],
        **keys("late_ranks_allow", late_ranks_allow(answer.fastest[-1].ranks, answer.sigma)),
        "least_saving": answer.least_saving,
    }


def write_results(output: Path, comm: Comm, results: Results, price: float | None) -> None:
    """Write report.html, pictures/, noise-scale.json and .csv, and with them trade-off.csv and nodes.csv if there
    is such, on rank 0. Raises ResourceError on all ranks."""
    with together(comm):
        if comm.rank == 0:
            activity.enter("drawing")
            _write(output, results, price)


def _write(output: Path, results: Results, price: float | None) -> None:
    from hvdtrain.analysis.study.noise.page import sections_of
    from hvdtrain.report.study import write_study

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"--output {output}: cannot be written: {error.strerror}") from None
    for name, rows in _tables(results).items():
        if rows:
            write_atomically(output / f"{name}.csv", csv_text(rows).encode())
    names = ", ".join(found.name for found in results.found)
    sections = sections_of(results, price)
    page, pictures = output / "report.html", output / "pictures"
    write_study(page, pictures, "How large a batch is useful", f"{names}.", sections)
    text = json_text(as_dict(results), indent=1)  # the last file: where it is, all are
    write_atomically(output / "noise-scale.json", text.encode())


def _tables(results: Results) -> dict[str, list[Row]]:
    noise: list[Row] = []
    for found in results.found:
        noise += [
            {"name": found.name, **vars(each)}
            for each in (found.recorded.intervals if found.recorded else [])
        ]
        if found.measured:
            noise.append({"name": found.name, **{key: found.measured[key] for key in MEASURED}})
    trade_offs = [
        {"name": found.name, **row}
        for found in results.found
        if found.trade_off is not None
        for row in found.trade_off.rows()
    ]
    nodes = [
        {"name": found.name, "link_gbit": answer.link_gbit, **offer.as_dict()}
        for found in results.found
        for answer in found.answers
        for offer in answer.offers
    ]
    return {"noise-scale": noise, "trade-off": trade_offs, "nodes": nodes}
