"""Results as lines, as a table, and as CSV."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.course import Result

COLUMNS = (
    *("seed", "fault", "moment", "ranks", "launcher", "at", "verdict", "codes"),
    *("recovered_s", "seconds", "note"),
)


def row(result: Result) -> dict[str, str]:
    """The cells of a case."""
    case = result.case
    recovered = result.recovered_s
    went_on = case.then_ranks and len(result.codes) > 1
    return {
        "seed": str(case.seed),
        "fault": case.fault,
        "moment": case.moment,
        "ranks": f"{case.ranks}→{case.then_ranks}" if went_on else str(case.ranks),
        "launcher": case.launcher,
        "at": result.at,
        "verdict": result.verdict,
        "codes": " ".join(map(str, result.codes)),
        "recovered_s": "" if recovered is None else f"{recovered:.1f}",
        "seconds": f"{result.seconds:.0f}",
        "note": "; ".join(result.notes),
    }


def line(result: Result) -> str:
    """One line about a case."""
    cells = row(result)
    recovered = f"recovered in {cells['recovered_s']} s" if cells["recovered_s"] else ""
    text = (
        f"{cells['seed']:>5}  {cells['fault']:<23} {cells['moment']:<11} {cells['ranks']:<3} "
        f"{cells['launcher']:<7} {cells['verdict']:<7} {cells['codes']:<9} {recovered}"
    )
    return f"{text}  {cells['note']}".rstrip()


def table(results: Sequence[Result]) -> str:
    """What came of each fault, as a Markdown table, and the number of cases by verdict."""
    lines = [
        "| fault | cases | ok | other | exit codes | recovered in, s |",
        "|---|---|---|---|---|---|",
    ]
    for fault in sorted({result.case.fault for result in results}):
        mine = [result for result in results if result.case.fault == fault]
        by = Counter(result.verdict for result in mine)
        other = ", ".join(f"{count} {verdict}" for verdict, count in by.items() if verdict != "ok")
        codes = ", ".join(map(str, sorted({result.codes[0] for result in mine if result.codes})))
        times = sorted(r.recovered_s for r in mine if r.recovered_s is not None)
        span = " to ".join(dict.fromkeys(f"{time:.1f}" for time in (times[:1] + times[-1:])))
        lines.append(f"| {fault} | {len(mine)} | {by['ok']} | {other} | {codes} | {span} |")
    totals = Counter(result.verdict for result in results)
    total = ", ".join(f"{count} {verdict}" for verdict, count in totals.most_common())
    return "\n".join([*lines, f"{len(results)} cases: {total}"])


def write(path: Path, results: Sequence[Result]) -> None:
    """All cases as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(map(row, results))
