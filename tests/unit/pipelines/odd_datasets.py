"""Random datasets with planted oddities, and what a plain reader (os.walk, csv, tarfile) finds in them."""

# ruff: noqa: PTH102, PTH103, PTH113, PTH114, PTH118, PTH119, PTH120, PTH122, PTH211 - names are bytes

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

JPEG, PNG = b"\xff\xd8\xff\xe0 jpeg", b"\x89PNG\r\n\x1a\n png"
Samples = Counter[tuple[bytes, str]]
"""Path (normalised) and the name of the class."""


class Odd(NamedTuple):
    """A dataset on the disk, and what must be found in it."""

    path: Path
    refused: bool
    """Whether it was made so that it must be refused."""
    samples: Samples
    left_out: int


# --- class folders

CLASSES = [b"ant", b"bee", b"10", b"2", b"a b", b"caf\xe9", "é".encode(), "e\u0301".encode(), b"A"]
ENDINGS = [b".jpg", b".JPEG", b".Png", b".webp", b".tiff", b".jp2"]
IMAGE_ENDINGS = {*ENDINGS, b".jpeg", b".png"}
FILES = {
    "plain": (b"%d.jpg", JPEG),
    "case": (b"%d.JpEg", JPEG),
    "png": (b"%d.PNG", PNG),
    "bytes": (b"\xff%d.jpg", JPEG),
    "composed": ("é%d.jpg".encode(), JPEG),
    "decomposed": ("e\u0301%d.jpg".encode(), JPEG),
    "line": (b"a\n%d.jpg", JPEG),
    "no ending": (b"img%d", JPEG),
    "other ending": (b"%d.photo", PNG),
    "gif": (b"%d.gif", b"GIF89a"),
    "text": (b"%d.txt", b"text"),
    "text without ending": (b"README%d", b"text"),
    "image called text": (b"%d.txt", JPEG),
    "backup": (b"%d.bak", JPEG),
    "tilde": (b"%d.jpg~", JPEG),
    "hidden": (b".%d.jpg", JPEG),
    "apple": (b"._%d.jpg", JPEG),
    "thumbs": (b"@eaDir/%d.jpg", JPEG),
    "mac": (b"__MACOSX/x/%d.jpg", JPEG),
    "hidden folder": (b".cache/%d.jpg", JPEG),
    "nested": (b"deep/er/%d.jpg", JPEG),
    "nested hidden": (b"deep/.%d.png", PNG),
    "empty": (b"%d.dat", b""),
}
LINKS = {
    "link": (b"%d.jpg", b"../../outside/o.jpg"),
    "link without ending": (b"l%d", b"../../outside/o.jpg"),
    "folder link": (b"f%d", b"../../outside"),
    "dangling": (b"%d.jpg", b"nowhere"),
    "dangling folder": (b"d%d", b"no/where"),
    "own link": (b"s%d", b"s%d"),
    "hidden link": (b".l%d", b"../../outside"),
    "cycle": (b"c%d", b".."),
}
NEVER = {b".txt", b".bak", b".csv", b".tar"}


def write_file(place: bytes, content: bytes) -> None:
    os.makedirs(os.path.dirname(place), exist_ok=True)
    Path(os.fsdecode(place)).write_bytes(content)


def plant(folder: bytes, kind: str, number: int) -> None:
    """Write one file, link, pipe or empty folder of `kind` into `folder`."""
    os.makedirs(folder, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(folder + b"/%d.jpg" % number)
    elif kind == "empty folder":
        os.mkdir(folder + b"/e%d" % number)
    elif kind in FILES:
        name, content = FILES[kind]
        write_file(folder + b"/" + name % number, content)
    else:
        name, target = LINKS[kind]
        os.symlink(target % number if b"%" in target else target, folder + b"/" + name % number)


def ending(name: bytes) -> bytes:
    return os.path.splitext(name)[1].lower()


def is_hidden(name: bytes) -> bool:
    return name.startswith(b".") or name in (b"@eaDir", b"__MACOSX")


def is_image(path: bytes) -> bool:
    """Whether a plain reader would take the file for an image."""
    if not os.path.isfile(path) or is_hidden(os.path.basename(path)):
        return False
    if ending(path) in {e.lower() for e in IMAGE_ENDINGS}:
        return True
    if ending(path) in NEVER or path.endswith(b"~"):
        return False
    return Path(os.fsdecode(path)).read_bytes().startswith((JPEG[:3], PNG[:8]))


def walked(root: bytes) -> tuple[list[bytes], int]:
    """The images below `root`, and the number of all other files."""
    images, others = [], 0
    for place, folders, files in os.walk(root, followlinks=True):
        for name in [name for name in folders if is_hidden(name)]:
            folders.remove(name)
            path = os.path.join(place, name)
            others += 1 if os.path.islink(path) else sum(len(f) for _p, _d, f in os.walk(path))
        for name in files:
            path = os.path.join(place, name)
            if is_image(path):
                images.append(path)
            else:
                others += 1
    return images, others


def class_folders(root: Path) -> Odd:
    """What os.walk finds in a tree of class folders without a cycle."""
    images, others = walked(os.fsencode(root))
    samples: Samples = Counter()
    for path in images:
        name, slash, _ = path[len(os.fsencode(root)) + 1 :].partition(b"/")
        if slash:
            samples[os.path.normpath(path), os.fsdecode(name)] += 1
        else:
            others += 1
    names = [p.name for p in root.iterdir() if p.is_dir() and not is_hidden(os.fsencode(p.name))]
    forms = {unicodedata.normalize("NFC", name) for name in names}
    with_images = {name for _path, name in samples}
    return Odd(root, len(forms) < len(names) or with_images != set(names), samples, others)


@st.composite
def trees(draw: st.DrawFn) -> tuple[dict[bytes, list[str]], list[str]]:
    """The kinds of files in each class folder, and beside the class folders."""
    rare = [*(["cycle"] if draw(st.integers(0, 9)) == 0 else []), "pipe", "empty folder"]
    kinds = st.sampled_from(sorted([*FILES, *(set(LINKS) - {"cycle"}), *rare]))
    beside = st.sampled_from([k for k in FILES if not k.startswith("nested")] + ["dangling folder"])
    names = draw(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=5, unique=True))
    classes = {name: draw(st.lists(kinds, max_size=8)) for name in names}
    for name in names:
        if draw(st.integers(0, 19)):  # seldom a class is left as it is, perhaps without images
            classes[name].append("plain")
    return classes, draw(st.lists(beside, max_size=4))


def write_tree(plan: tuple[dict[bytes, list[str]], list[str]], folder: Path) -> Odd:
    classes, beside = plan
    root = folder / "photos"
    for place in (root, folder / "outside"):
        place.mkdir()
    write_file(os.fsencode(folder) + b"/outside/o.jpg", JPEG)
    number = 0
    for name, kinds in {**classes, b"": beside}.items():
        inner = os.path.join(os.fsencode(root), name)
        os.makedirs(inner, exist_ok=True)
        for kind in kinds:
            plant(inner, kind, number := number + 1)
    if any("cycle" in kinds for kinds in classes.values()):
        return Odd(root, True, Counter(), 0)
    return class_folders(root)


# --- lists

LABELS = ["ant", "bee", "10", "2", "a b", "a,b", "x;y", 'the "q"', "é"]
REFUSED_LISTS = ["missing", "no label", "comma", "one-hot", "no header", "open quote"]


class ListPlan(NamedTuple):
    """How a list is written."""

    kind: str
    separator: str
    encoding: str
    eol: str
    header: bool
    extra: int
    windows: bool
    quoting: int
    stems: bool
    flat: bool
    refused: str
    rows: list[tuple[int, str]]


@st.composite
def lists(draw: st.DrawFn) -> ListPlan:
    refused = draw(st.sampled_from(REFUSED_LISTS)) if draw(st.integers(0, 3)) == 0 else ""
    header = draw(st.booleans()) if refused != "no header" else False
    header = header or refused == "one-hot"
    rows = draw(
        st.lists(st.tuples(st.integers(0, 9), st.sampled_from(LABELS)), min_size=2, max_size=9)
    )
    extra = draw(st.integers(0, 2)) if header else int(refused == "no header")
    return ListPlan(
        draw(st.sampled_from(["csv", "tsv", "txt"])),
        draw(st.sampled_from(",;\t")),
        draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])),
        draw(st.sampled_from(["\n", "\r\n"])),
        header,
        extra,
        draw(st.booleans()),
        draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        draw(st.booleans()),
        draw(st.booleans()),
        refused,
        rows,
    )


def cells_of(plan: ListPlan, number: int, label: str) -> list[str]:
    name = f"é {number}" if number % 3 == 0 else f"n{number}"
    name = unicodedata.normalize("NFD", name) if number % 2 else name
    name += "" if plan.stems and number % 4 == 1 else ".jpg"
    inner = "" if plan.flat else f"img/d{number % 2}/"
    path = (inner + name).replace("/", "\\") if plan.windows else inner + name
    more = [f"{number}.5", "note"][: plan.extra]
    return [*more[:1], path, label, *more[1:]] if plan.header else [path, label, *more]


def table_of(plan: ListPlan) -> list[list[str]]:
    rows = [cells_of(plan, number, label) for number, label in plan.rows]
    names = [*["score"][: plan.extra], "Image_Path", "label", *["note"][: plan.extra - 1]]
    if plan.refused == "missing":
        rows[-1] = cells_of(plan, 77, "ant")
    if plan.refused == "no label":
        rows[-1] = ["" if cell == plan.rows[-1][1] else cell for cell in rows[-1]]
    if plan.refused == "one-hot":
        names = ["image", "ant", "bee", "cat"]
        rows = [[row[plan.extra and 1], "1", "0", "0"] for row in rows]
    return [names, *rows] if plan.header else rows


def write_list(plan: ListPlan, folder: Path) -> Odd:
    """Write the images and the list; then read it as the csv module does."""
    for number in range(10):
        inner = "" if plan.flat else f"d{number % 2}/"
        name = f"é {number}" if number % 3 == 0 else f"n{number}"
        write_file(os.fsencode(folder / "img" / f"{inner}{name}.jpg"), JPEG)
    path = folder / f"img.{plan.kind}"
    with path.open("w", encoding=plan.encoding, newline="") as file:
        form = {"delimiter": plan.separator, "quoting": plan.quoting, "lineterminator": plan.eol}
        csv.writer(file, **form).writerows(table_of(plan))
        if plan.refused == "comma":
            file.write(plan.separator.join([*cells_of(plan, 1, "b"), "rest"]) + plan.eol)
        if plan.refused == "open quote":
            file.write(f'"{plan.separator.join(cells_of(plan, 1, "b"))}{plan.eol}')
    named = folder / "img" if plan.flat else path
    if plan.refused:
        return Odd(named, True, Counter(), 0)
    samples = listed(path, plan)
    used = {name for name, _label in samples}
    left = len(set(walked(os.fsencode(folder / "img"))[0]) - used) if plan.flat else 0
    return Odd(named, False, samples, left)


def listed(path: Path, plan: ListPlan) -> Samples:
    """The rows that Python's csv finds, each with the file that it stands for."""
    root = path.parent / "img" if plan.flat else path.parent
    known = {unicodedata.normalize("NFC", str(p)): p for p in root.rglob("*.jpg")}
    encoding = plan.encoding if plan.encoding != "utf-8" else "utf-8-sig"
    with path.open(encoding=encoding, newline="") as file:
        rows = list(csv.reader(file, delimiter=plan.separator))
    at = (rows[0].index("Image_Path"), rows[0].index("label")) if plan.header else (0, 1)
    samples: Samples = Counter()
    for row in rows[plan.header :]:
        name = unicodedata.normalize("NFC", str(root / row[at[0]].replace("\\", "/")))
        samples[os.fsencode(known.get(name) or known[f"{name}.jpg"]), row[at[1]]] += 1
    return samples
