"""Random lists of images, and which rows Python's csv (or a split at blanks) finds in them."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from tests.unit.pipelines.odd_datasets import (
    FILES,
    JPEG,
    LINKS,
    Odd,
    Samples,
    plant,
    walked,
    write_file,
)

LABELS = ["ant", "bee", "10", "2", "a b", "a,b", "x;y", 'the "q"', "é"]
WORDS = [label for label in LABELS if " " not in label]
NUMBERS = ["0", "1", "007", "9"]
SYNSETS = [f"n{k:08d}" for k in range(10)]
REFUSED = ["missing", "no label", "no mark", "two labels"]
REFUSED_TABLES = [*REFUSED, "comma", "one-hot", "no header", "open quote", "other sep"]
REFUSED_SYNSETS = [*REFUSED, "few synsets", "synset twice", "empty synset"]
BESIDE = sorted({*FILES, *LINKS} - {"nested", "nested hidden", "folder link", "cycle"})
"""What may lie in a flat folder beside its images."""


class ListPlan(NamedTuple):
    """How a list is written."""

    kind: str
    separator: str
    """A blank: the label is the last word."""
    encoding: str
    eol: str
    header: bool
    sep_line: bool
    extra: int
    windows: bool
    quoting: int
    stems: bool
    place: str
    """`list`, or where the label file of a flat folder is: `beside` it or `inside`."""
    synsets: bool
    refused: str
    rows: list[tuple[int, str]]
    beside: list[str]


@st.composite
def lists(draw: st.DrawFn) -> ListPlan:
    separator = draw(st.sampled_from([",", ";", "\t", " "]))
    words, synsets = separator == " ", draw(st.integers(0, 4)) == 0
    reasons = REFUSED_SYNSETS if synsets else REFUSED if words else REFUSED_TABLES
    refused = draw(st.sampled_from(reasons)) if draw(st.integers(0, 3)) == 0 else ""
    header = refused == "one-hot" or (refused != "no header" and draw(st.booleans()))
    labels = st.sampled_from(NUMBERS if synsets else WORDS if words else LABELS)
    label_of = draw(st.dictionaries(st.integers(0, 9), labels, min_size=2))
    numbers = [*label_of, *draw(st.lists(st.sampled_from(sorted(label_of)), max_size=4))]
    extra = draw(st.integers(0, 2)) if header and not words else int(refused == "no header")
    place = draw(st.sampled_from(["list", "beside", "inside"]))
    return ListPlan(
        "txt" if words else draw(st.sampled_from(["csv", "tsv", "txt"])),
        separator,
        draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])),
        draw(st.sampled_from(["\n", "\r\n"])),
        header,
        not words and (refused == "other sep" or draw(st.integers(0, 3)) == 0),
        extra,
        draw(st.booleans()),
        draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        draw(st.booleans()),
        place,
        synsets,
        refused,
        [(number, label_of[number]) for number in numbers],
        draw(st.lists(st.sampled_from(BESIDE), max_size=5)) if place != "list" else [],
    )


def cells_of(plan: ListPlan, number: int, label: str) -> list[str]:
    name = f"é {number}" if number % 3 == 0 else f"n{number}"
    name = unicodedata.normalize("NFD", name) if number % 2 else name
    name += "" if plan.stems and number % 4 == 1 else ".jpg"
    inner = f"img/d{number % 2}/" if plan.place == "list" else ""
    path = (inner + name).replace("/", "\\") if plan.windows else inner + name
    more = [f"{number}.5", "note"][: plan.extra]
    return [*more[:1], path, label, *more[1:]] if plan.header else [path, label, *more]


def table_of(plan: ListPlan) -> list[list[str]]:
    rows = [cells_of(plan, number, label) for number, label in plan.rows]
    names = [*["score"][: plan.extra], "Image_Path", "label", *["note"][: plan.extra - 1]]
    number, label = plan.rows[-1]
    if plan.refused == "missing":
        rows[-1] = cells_of(plan, 77, label)
    if plan.refused == "no label":
        rows[-1] = ["" if cell == label else cell for cell in rows[-1]]
    if plan.refused == "two labels":
        rows.append(cells_of(plan, number, "1" if label == "0" else "0"))
    if plan.refused == "few synsets":
        rows[-1] = cells_of(plan, number, "10")
    if plan.refused == "one-hot":
        names = ["image", "ant", "bee", "cat"]
        rows = [[row[plan.extra and 1], "1", "0", "0"] for row in rows]
    return [names, *rows] if plan.header else rows


def text_of(plan: ListPlan) -> str:
    """What is in the list."""
    if plan.separator == " ":
        return "".join(" ".join(row) + plan.eol for row in table_of(plan))
    other = "," if plan.separator == ";" else ";"
    said = other if plan.refused == "other sep" else plan.separator
    lines = [f"sep={said}"] if plan.sep_line else []
    for row in table_of(plan):
        file = _Line()
        csv.writer(file, delimiter=plan.separator, quoting=plan.quoting).writerow(row)
        lines.append(file.text.removesuffix("\r\n"))
    if plan.refused == "comma":
        lines.append(plan.separator.join([*cells_of(plan, 1, "b"), "rest"]))
    if plan.refused == "open quote":
        lines.append(f'"{plan.separator.join(cells_of(plan, 1, "b"))}')
    return "".join(line + plan.eol for line in lines)


class _Line:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


def write_list(plan: ListPlan, folder: Path) -> Odd:
    """Write the images and the list; then read it as the csv module does."""
    root = folder / "set"
    images = root / "img"
    for number in range(10):
        inner = f"d{number % 2}/" if plan.place == "list" else ""
        name = f"é {number}" if number % 3 == 0 else f"n{number}"
        write_file(os.fsencode(images / f"{inner}{name}.jpg"), JPEG)
    write_file(os.fsencode(folder) + b"/outside/o.jpg", JPEG)
    for number, kind in enumerate(plan.beside, 100):
        plant(os.fsencode(images), kind, number)
    path = (images if plan.place == "inside" else root) / f"img.{plan.kind}"
    encoding = "utf-16-le" if plan.refused == "no mark" else plan.encoding
    path.write_bytes(text_of(plan).encode(encoding))
    if plan.synsets:
        lines = [f"{name} a, b" for name in SYNSETS]
        lines[5] = {"synset twice": f"{SYNSETS[4]} c", "empty synset": ""}.get(
            plan.refused, lines[5]
        )
        (path.parent / "synsets.txt").write_text("\n".join(lines) + "\n")
    named = path if plan.place == "list" else images
    if plan.refused or "tar" in plan.beside:  # which are the dataset, images or tar files?
        return Odd(named, True, Counter(), 0)
    samples, left = listed(path, plan), 0
    if plan.place != "list":
        found, others = walked(os.fsencode(images))
        used = {os.path.normpath(name) for name, _label in samples}
        left = len({os.path.normpath(name) for name in found} - used) + others
        left -= (1 + plan.synsets) * (plan.place == "inside")
    return Odd(named, False, samples, left, unclear=is_unclear(plan))


def is_unclear(plan: ListPlan) -> bool:
    """Whether the list can be read in two ways, so that a refusal is as good as the right reading.

    Nothing tells two separators apart that split every line alike, if no name in it has an ending.
    """
    lines = [line for line in text_of(plan).split(plan.eol) if line]
    if plan.sep_line or any(".jpg" in line for line in lines):
        has_stem = any(".jpg" not in line for line in lines[plan.header :])
        is_cut = any(sign in lines[0] for sign in ",;\t")
        return plan.separator == " " and has_stem and is_cut
    for other in {",", ";", "\t"} - {plan.separator}:
        widths = {len(row) for row in csv.reader(lines, delimiter=other, skipinitialspace=True)}
        if len(widths) == 1 and min(widths) > 1:
            return True
    return plan.separator == " " and any(sign in lines[0] for sign in ",;\t")


def listed(path: Path, plan: ListPlan) -> Samples:
    """The rows that Python finds, each with the file that it stands for."""
    root = path.parent / "img" if plan.place == "beside" else path.parent
    known = {unicodedata.normalize("NFC", str(p)): p for p in root.rglob("*.jpg")}
    lines = path.read_bytes().decode(plan.encoding).splitlines()[plan.sep_line :]
    if plan.separator == " ":
        rows = [line.rsplit(None, 1) for line in lines]
    else:
        rows = list(csv.reader(lines, delimiter=plan.separator))
    at = (rows[0].index("Image_Path"), rows[0].index("label")) if plan.header else (0, 1)
    samples: Samples = Counter()
    for row in rows[plan.header :]:
        name = unicodedata.normalize("NFC", str(root / row[at[0]].replace("\\", "/")))
        label = SYNSETS[int(row[at[1]])] if plan.synsets else row[at[1]]
        samples[os.fsencode(known.get(name) or known[f"{name}.jpg"]), label] += 1
    return samples
