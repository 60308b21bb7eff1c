"""Reading a list of images: which separator it has, which columns, and one (path, label) a line."""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections.abc import Iterator
from typing import NamedTuple, TextIO

from hvdtrain.config.data import Columns
from hvdtrain.errors import DataError
from pipelines.sources.base import EXTENSIONS, some
from pipelines.sources.column_names import IDS, LABELS, NUMBERS, PARTS, PATHS
from pipelines.sources.guess import what_file
from pipelines.sources.left_out import printable
from pipelines.sources.retries import RETRIES

MAX_LINE = 2**16
"""Characters in a line."""
_SEPARATORS = (",", ";", "\t")
_SAMPLE = 200  # lines from which the separator is told
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_ADVICE = "name them: data.columns={path: …, label: …} (--columns PATH,LABEL)"


class Row(NamedTuple):
    """One image of a list."""

    line: int
    path: str
    label: str


class _Layout(NamedTuple):
    """Where in a row path and label are."""

    path: int
    label: int
    width: int
    header: bool
    first_word: bool = False
    """Whether the label is the first word of its cell (Kaggle's ImageNet)."""


def read_table(path: str, key: str, columns: Columns | None = None) -> list[Row]:
    """All rows of the list at `path`, in order. Raises DataError naming a line it does not take."""
    columns = columns or Columns()
    where = f"{key}: {printable(path)}"
    if what := what_file(path):
        raise DataError(f"{where}: {what}: not a list of images")

    def once() -> list[Row]:
        with open(path, newline="", encoding=_encoding(path), errors=_errors(path)) as text:  # noqa: PTH123
            return list(_rows(_lines(text, where), path, where, columns))

    try:
        return RETRIES.read(path, once)
    except OSError as error:
        raise DataError(f"{where}: cannot read: {error.strerror}") from None
    except UnicodeError:
        raise DataError(f"{where}: damaged text; save it as UTF-8") from None


def _encoding(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123
        begin = file.read(4)
    return next((name for bom, name in _BOMS if begin.startswith(bom)), "utf-8")


def _errors(path: str) -> str:
    """File names are bytes: any of them are kept; a list in UTF-16 has none that need it."""
    return "surrogateescape" if _encoding(path).startswith("utf-8") else "strict"


def _lines(text: TextIO, where: str) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise DataError(
                f"{where}:{number}: a line of more than {MAX_LINE:,} characters: no list"
            )
        if "\0" in line:
            raise DataError(f"{where}:{number}: not a text file (NUL bytes); save it as UTF-8")
        yield line


def _rows(lines: Iterator[str], path: str, where: str, columns: Columns) -> Iterator[Row]:
    sample = list(itertools.islice(lines, _SAMPLE))
    skipped = 0
    if sample and (named := re.fullmatch(r"sep=([,;\t])\s*", sample[0])):  # Excel's first line
        separator: str | None = named[1]
        sample, skipped = sample[1:], 1
    else:
        separator = _separator(sample, os.path.splitext(path)[1].lower())  # noqa: PTH122
    layout: _Layout | None = None
    parts: dict[int, str] = {}
    for number, cells in _cells(itertools.chain(sample, lines), separator, where, skipped):
        place = f"{where}:{number}"
        if not any(cells):
            continue
        if layout is None:
            while len(cells) > 2 and not cells[-1]:
                cells.pop()
            layout = _layout(cells, place, columns)
            if layout.header:
                parts = dict.fromkeys(_find(cells, PARTS) if columns == Columns() else (), "")
                continue
        _require_one_part(cells, parts, place)
        yield _row(cells, number, layout, place)


def _cells(
    lines: Iterator[str], separator: str | None, where: str, skipped: int
) -> Iterator[tuple[int, list[str]]]:
    """Number and stripped cells of every line; without `separator` the last word is the label."""
    if separator is None:
        for number, line in enumerate(lines, skipped + 1):
            yield number, line.strip().rsplit(maxsplit=1)
        return
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            yield reader.line_num + skipped, [cell.strip() for cell in cells]
    except csv.Error as error:
        number = reader.line_num + skipped
        raise DataError(
            f'{where}:{number}: {error}: is a quote (") not closed, or not doubled?'
        ) from None


def _separator(sample: list[str], kind: str) -> str | None:
    """The separator of the lines `sample`: the one that splits every line alike.

    If several do, the one that leaves cells that end like image files, then the one that `kind`,
    the ending of the list, stands for. None: words (the label is the last one), in a .txt.
    """
    lines = [line for line in sample if line.strip()]
    before = [line.strip().rsplit(maxsplit=1)[0] for line in lines]
    words = kind == ".txt" and before and all(map(_is_file, before[1:] or before))
    usual = {".tsv": "\t", ".csv": ","}.get(kind)
    best, choice = (0, 0, False), usual
    for separator in _SEPARATORS:
        try:
            rows = list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
        except csv.Error:
            continue
        widths = {len(row) for row in rows}
        if not widths or max(widths) < 2 or len(rows[0]) < 2:
            continue
        files = sum(any(_is_file(cell.strip()) for cell in row) for row in rows)
        if (score := (2 if len(widths) == 1 else 1, files, separator == usual)) > best:
            best, choice = score, separator
    # The first line may be a header.
    return None if words and best[:2] < (2, max(1, len(lines) - 1)) else choice


def _is_file(text: str) -> bool:
    return os.path.splitext(text)[1].lower().encode("utf-8", "surrogateescape") in EXTENSIONS  # noqa: PTH122


def _layout(cells: list[str], place: str, columns: Columns) -> _Layout:
    """The columns, from the first line."""
    width = len(cells)
    if columns.path is not None or columns.label is not None:
        return _named_layout(cells, place, columns)
    if width < 2 or any(map(_is_file, cells)):
        if width > 2:
            raise DataError(
                f'{place}: {width} columns without a header; expected "path,label": add a first line '
                "with their names"
            )
        return _Layout(0, 1, 2, header=False)
    paths = _find(cells, PATHS) or _find(cells, IDS)
    labels = _find(cells, LABELS) or _find(cells, NUMBERS)
    if width == 2 and not paths:
        return _Layout(0, 1, 2, header=False)
    if width == 2 and not labels and len(paths) == 1 and not _find(cells, PATHS | IDS)[1:]:
        labels = [1 - paths[0]]
    if len(paths) != 1 or len(labels) != 1 or paths == labels:
        raise DataError(f"{place}: {_unclear(cells, paths, labels)}")
    is_kaggle = _plain(cells[labels[0]]) == "predictionstring"
    return _Layout(paths[0], labels[0], width, header=True, first_word=is_kaggle)


def _named_layout(cells: list[str], place: str, columns: Columns) -> _Layout:
    """The columns that the config names; one that it does not name is recognised."""
    found: list[int] = []
    for field, name in (("path", columns.path), ("label", columns.label)):
        if name is None:
            names = PATHS if field == "path" else LABELS
            others = IDS if field == "path" else NUMBERS
            places = _find(cells, names) or _find(cells, others)
        else:
            places = [k for k, cell in enumerate(cells) if cell == name.strip()]
            places = places or _find(cells, frozenset([_plain(name)]))
        if len(places) != 1:
            what = f"column {name}" if name is not None else f"one column for the {field}"
            shown = some([printable(cell)[:40] for cell in cells], 12)
            raise DataError(
                f"{place}: data.columns.{field}: {'several' if places else 'no'} {what}; its columns "
                f"are {shown}"
            )
        found += places
    if found[0] == found[1]:
        raise DataError(f"{place}: data.columns: path and label are the same column")
    return _Layout(found[0], found[1], len(cells), header=True)


def _find(cells: list[str], names: frozenset[str]) -> list[int]:
    return [k for k, cell in enumerate(cells) if _plain(cell) in names]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())


def _unclear(cells: list[str], paths: list[int], labels: list[int]) -> str:
    names = [printable(cell)[:40] or '""' for cell in cells]
    shown = some(names, 12)
    if len(paths) == 1 and not labels:
        return (
            f"columns {shown}: none of them is known as the label; {_ADVICE}. One column for each "
            "class (one-hot) is not read: write the name of the class into one"
        )
    if not paths or not labels:
        return f"columns {shown}: which ones are path and label? {_ADVICE}"
    several = [names[k] for k in (paths if len(paths) > 1 else labels)]
    return f"columns {shown}: several could be meant, {' and '.join(several)}; {_ADVICE}"


def _row(cells: list[str], number: int, layout: _Layout, place: str) -> Row:
    width = layout.width
    if any(cells[width:]):
        raise DataError(
            f"{place}: {len(cells)} cells, expected {width}: put a cell that has the separator in it "
            f"in quotes; found {_quoted(cells)}"
        )
    if len(cells) < width or not cells[layout.path] or not cells[layout.label]:
        wanted = '"path,label"' if width == 2 else f"{width} cells with a path and a label"
        raise DataError(f"{place}: expected {wanted}, found {_quoted(cells)}")
    file, label = cells[layout.path], cells[layout.label]
    if "\n" in file or "\n" in label or "\r" in file or "\r" in label:
        raise DataError(f'{place}: a cell that goes on over lines: is a quote (") not closed?')
    return Row(number, file, label.split()[0] if layout.first_word else label)


def _require_one_part(cells: list[str], parts: dict[int, str], place: str) -> None:
    """Raise DataError if a column such as `split` says that the rows are of several parts."""
    for k, known in parts.items():
        value = cells[k] if k < len(cells) else ""
        parts[k] = known or value
        if known and value and value != known:
            raise DataError(
                f"{place}: a row of {printable(value)[:40]} among rows of {printable(known)[:40]}: "
                "write one list for each part; to take all rows, name both columns: "
                "data.columns={path: …, label: …}"
            )


def _quoted(cells: list[str]) -> str:
    return f'"{printable(",".join(cells)[:80])}"'
