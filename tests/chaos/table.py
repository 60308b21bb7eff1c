"""Results as lines, as tables, and as CSV: `python -m tests.chaos.table FILE.csv` prints both tables of a run."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.course import Result

COLUMNS = (
    *("seed", "fault", "moment", "ranks", "launcher", "at", "verdict", "codes"),
    *("recovered_s", "seconds", "note"),
)
Row = dict[str, str]


def row(result: Result) -> Row:
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


def by_fault(rows: Sequence[Row]) -> str:
    """What came of each fault, as a Markdown table, and the number of cases by verdict."""
    lines = [
        "| fault | cases | ok | other | exit codes | recovered in, s |",
        "|---|---|---|---|---|---|",
    ]
    for fault in sorted({cells["fault"] for cells in rows}):
        mine = [cells for cells in rows if cells["fault"] == fault]
        by = Counter(cells["verdict"] for cells in mine)
        other = ", ".join(f"{count} {verdict}" for verdict, count in by.items() if verdict != "ok")
        codes = sorted({int(cells["codes"].split()[0]) for cells in mine if cells["codes"]})
        times = sorted(float(cells["recovered_s"]) for cells in mine if cells["recovered_s"])
        span = " to ".join(dict.fromkeys(f"{time:.1f}" for time in (times[:1] + times[-1:])))
        listed = ", ".join(map(str, codes))
        lines.append(f"| {fault} | {len(mine)} | {by['ok']} | {other} | {listed} | {span} |")
    totals = Counter(cells["verdict"] for cells in rows)
    total = ", ".join(f"{count} {verdict}" for verdict, count in totals.most_common())
    return "\n".join([*lines, "", f"{len(rows)} cases: {total}"])


def by_case(rows: Sequence[Row]) -> str:
    """All cases, as a Markdown table."""
    lines = [
        "| seed | fault | moment | ranks, launcher | exit codes | end | recovered in, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for cells in rows:
        note = cells["note"].partition("; see ")[0].replace("|", "\\|")
        end = cells["verdict"] + (f": {note}" if note else "")
        lines.append(
            f"| {cells['seed']} | {cells['fault']} | {cells['moment']} | {cells['ranks']}, "
            f"{cells['launcher']} | {', '.join(cells['codes'].split())} | {end} | "
            f"{cells['recovered_s']} |"
        )
    return "\n".join(lines)


def write(path: Path, results: Sequence[Result]) -> None:
    """All cases as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(map(row, results))


def read(path: Path) -> list[Row]:
    """What `write` has written."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    found = read(Path(sys.argv[1]))
    print(f"{by_fault(found)}\n\n{by_case(found)}")
