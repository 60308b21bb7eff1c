"""Random datasets with planted oddities, and what a plain reader (os.walk, csv, tarfile) finds in them."""

# ruff: noqa: PTH102, PTH103, PTH113, PTH114, PTH118, PTH119, PTH120, PTH122, PTH211 - names are bytes

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

COUNT = int(os.environ.get("HVDTRAIN_ODD_DATASETS", "200"))
SETTINGS = settings(
    deadline=None,
    derandomize="HVDTRAIN_ODD_DATASETS" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""The same datasets at every run, unless their number is asked for."""
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
    hint: str = ""
    """What the refusal must name."""
    unclear: bool = False
    """Whether it can be read in two ways: it is refused, or read as expected."""
    by_content: bool = False
    """Whether `samples` has the bytes of the images in place of their paths."""


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
    "text": (b"note%d.txt", b"text"),
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
    "tar": (b"%d.tar", b"no tar file"),
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
    loose = ["dangling folder", "tar"]
    beside = st.sampled_from([k for k in FILES if not k.startswith("nested")] + loose)
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


# --- the wrong folder is named

WRONG = ["splits", "too shallow", "too deep"]
PLAIN = ["plain", "case", "png", "bytes", "composed", "gif", "text", "hidden", "apple", "dangling"]


@st.composite
def wrong_levels(draw: st.DrawFn) -> tuple[str, list[str], dict[bytes, list[str]], str]:
    """What is wrong, the folders above the classes, the kinds of files in each class, and the key."""
    wrong = draw(st.sampled_from(WRONG))
    if wrong == "splits":
        above = ["train", *draw(st.sampled_from([[], ["val"], ["val", "test"], ["Test"]]))]
    else:
        above = ["photos", "data", "a b", "x"][: draw(st.integers(1, 4))]
    names = draw(st.lists(st.sampled_from(CLASSES[:5]), min_size=2, max_size=4, unique=True))
    kinds = st.lists(st.sampled_from(PLAIN), max_size=4)
    return (
        wrong,
        above,
        {name: ["plain", *draw(kinds)] for name in names},
        draw(st.sampled_from(["data.train", "data.val"])),
    )


def write_wrong_level(
    plan: tuple[str, list[str], dict[bytes, list[str]], str], folder: Path
) -> Odd:
    """A dataset of which the folder above or below it is named."""
    wrong, above, classes, key = plan
    root = folder / "root"
    places = [root / name for name in above] if wrong == "splits" else [root.joinpath(*above)]
    number = 0
    for place in places:
        for name, kinds in classes.items():
            for kind in kinds:
                plant(os.fsencode(place) + b"/" + name, kind, number := number + 1)
    if wrong == "too deep":
        inner = os.fsdecode(os.path.join(os.fsencode(places[0]), next(iter(classes))))
        return Odd(Path(inner), True, Counter(), 0, hint=f"name {places[0]}")
    likely = places[0]
    if wrong == "splits" and key == "data.val":
        likely = root / next(name for name in ("val", "Test", "train") if name in above)
    return Odd(root, True, Counter(), 0, hint=str(likely))
