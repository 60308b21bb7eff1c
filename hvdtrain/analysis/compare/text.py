"""A comparison as the lines that `hvdtrain compare` prints."""

from __future__ import annotations

from collections.abc import Container, Sequence

from hvdtrain.analysis.compare.comparison import Comparison
from hvdtrain.analysis.compare.groups import Group
from hvdtrain.analysis.compare.pairs import HOW, Pair
from hvdtrain.report.text import MISSING

_MOST = 40  # pairs that are printed
_GAP = "  "


def as_text(found: Comparison, width: int | None = None) -> str:
    """All tables; columns of groups that do not fit in `width` characters follow below."""
    letters = [group.letter for group in found.groups]
    parts = [_groups(found)]
    for machine, title in ((False, "settings that differ"), (True, "machines and their settings")):
        rows = [[each.key, *each.cells] for each in found.differences if each.machine == machine]
        if rows:
            parts.append(_table(title, letters, rows, width))
    rows = [[f.title, *(group.text(f) for group in found.groups)] for f in found.figures]
    parts.append(_table("mean ± standard deviation", letters, rows, width))
    parts += _pairs(found.pairs)
    if found.notes:
        parts.append("\n".join(f"note: {note}" for note in found.notes))
    return "\n\n".join(parts)


def _groups(found: Comparison) -> str:
    lines = []
    for group in found.groups:
        runs = f"{len(group.runs)} run{'s' if len(group.runs) > 1 else ''}"
        states = [run.state for run in group.runs if run.state != "finished"]
        more = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        seeds = seeds_text(group)
        of = [f"seed{'s' if ',' in seeds else ''} {seeds}"] if seeds != MISSING else []
        lines.append([group.letter, group.name, "; ".join([runs, *of, *more])])
    return _aligned(lines, left=(0, 1, 2))


def seeds_text(group: Group) -> str:
    """Such as 0, 1, 2."""
    seeds = sorted({run.facts.seed for run in group.runs if run.facts.seed is not None})
    return ", ".join(map(str, seeds[:12])) + (", …" if len(seeds) > 12 else "") or MISSING


def _table(
    title: str, letters: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> str:
    """Rows of a name and a cell for each group, in blocks that fit."""
    widths = [max(len(row[i + 1]) for row in [["", *letters], *rows]) for i in range(len(letters))]
    first = max(len(row[0]) for row in [[title], *rows])
    blocks, begin = [], 0
    while begin < len(letters):
        end, used = begin, first
        while end < len(letters) and (
            end == begin or width is None or used + len(_GAP) + widths[end] <= width
        ):
            used += len(_GAP) + widths[end]
            end += 1
        head = [title, *letters[begin:end]]
        blocks.append(
            _aligned([head, *([row[0], *row[begin + 1 : end + 1]] for row in rows)], left=(0,))
        )
        begin = end
    return "\n\n".join(blocks)


def _pairs(pairs: Sequence[Pair]) -> list[str]:
    """The tests, those without one by their reasons, and how they were made."""
    tested = [pair for pair in pairs if pair.test]
    parts = []
    if tested:
        head = ["difference", "of", "mean", "95 % interval", "p", "test", ""]
        rows = [pair_cells(pair) for pair in tested[:_MOST]]
        parts.append(_aligned([head, *rows], left=(0, 1, 5, 6)))
        if len(tested) > _MOST:
            parts.append(f"… and {len(tested) - _MOST} more: in tests.csv")
    parts += ["\n".join(_untested(pairs))] if len(tested) < len(pairs) else []
    return [*parts, HOW] if tested else parts


def _untested(pairs: Sequence[Pair]) -> list[str]:
    """Which pairs have no test, by the reason; with the figure if it is not so for all."""
    figures = len({pair.figure.key for pair in pairs})
    reasons: dict[str, dict[str, list[str]]] = {}
    for pair in pairs:
        if not pair.test:
            of = reasons.setdefault(pair.reason, {})
            of.setdefault(_name(pair), []).append(pair.figure.title)
    lines = []
    for reason, of in reasons.items():
        names = [
            name if len(titles) == figures else f"{name} ({', '.join(titles)})"
            for name, titles in of.items()
        ]
        shown = ", ".join(names[:12]) + (f", … ({len(names)} pairs)" if len(names) > 12 else "")
        lines.append(f"{shown}: {reason}")
    return lines


def _name(pair: Pair) -> str:
    return f"{pair.a.letter} – {pair.b.letter}"


def pair_cells(pair: Pair) -> list[str]:
    """Pair, figure, difference, interval, p, test and verdict."""
    test = pair.test
    if test is None or pair.p is None:
        return [_name(pair), pair.figure.title, *[MISSING] * 4, pair.reason]
    show = f"{test.difference:+.4g}", f"{test.low:+.4g} … {test.high:+.4g}"
    unit = f" {pair.figure.unit}".rstrip()
    seeds = f"n = {pair.counts[0]}" + ("" if test.method == "paired" else f", {pair.counts[1]}")
    return [
        *(_name(pair), pair.figure.title, show[0] + unit, show[1] + unit),
        *(p_text(pair.p), f"{test.method}, {seeds}", pair.verdict),
    ]


def p_text(p: float) -> str:
    """Such as 0.031; small ones as < 0.0001."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.995 else "1"


def _aligned(rows: Sequence[Sequence[str]], left: Container[int]) -> str:
    """Columns of equal width, flush right but those with the numbers in `left`."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        _GAP.join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
