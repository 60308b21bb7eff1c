"""Random tar shards with planted oddities, and what Python's tarfile finds in them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from tests.unit.pipelines.odd_datasets import Odd, plant

FORMS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
Part = tuple[str, bytes, bytes]
"""Name, content or target, and the type of a member."""


def file(name: str, content: bytes = b"x") -> Part:
    return name, content, tarfile.REGTYPE


def label(key: str, k: int, *, as_json: bool = False) -> Part:
    if as_json:
        return file(f"{key}.json", b'{"w": 1, "label": %d}' % k)
    return file(f"{key}.cls", b"%d\n" % k)


def image(key: str, extension: str = "jpg") -> Part:
    return file(f"{key}.{extension}", b"image " + key.encode())


ACCEPTED = {
    "plain": lambda key, k: [image(key), label(key, k)],
    "label first": lambda key, k: [label(key, k), image(key, "PNG")],
    "json": lambda key, k: [label(key, k, as_json=True), image(key)],
    "both": lambda key, k: [image(key), label(key, k), label(key, k, as_json=True)],
    "long name": lambda key, k: [image("d" * 60 + "/" + key * 9), label("d" * 60 + "/" + key * 9, k)],
    "caption": lambda key, k: [image(key), file(f"{key}.txt"), label(key, k)],
    "mask": lambda key, k: [image(key), file(f"{key}.mask.png"), label(key, k)],
    "apple": lambda key, k: [file(f"._{key}.jpg"), image(key), file(f"._{key}.cls"), label(key, k)],
    "thumbs": lambda key, k: [image(key), label(key, k), file(f"@eaDir/{key}.jpg")],
    "hidden folder": lambda key, k: [image(f".c/{key}"), label(f".c/{key}", k)],
    "no extension": lambda key, k: [image(key), file("README"), label(key, k)],
    "label alone": lambda key, k: [label(key, k)],
    "gif": lambda key, k: [file(f"{key}.gif"), label(key, k)],
    "meta": lambda key, k: [file(f"__{key}__/a.json")],
    "hard link": lambda key, k: [
        image(key),
        label(key, k),
        (f"h{key}.jpg", f"{key}.jpg".encode(), tarfile.LNKTYPE),
        label(f"h{key}", k),
    ],
    "soft link": lambda key, k: [
        (f"s{key}.jpg", f"./{key}.jpg".encode(), tarfile.SYMTYPE),
        label(f"s{key}", k),
        image(key),
        label(key, k),
    ],
    "dangling": lambda key, k: [
        (f"{key}.jpg", b"nowhere.jpg", tarfile.SYMTYPE),
        label(key, k),
    ],
    "folder": lambda key, k: [(f"{key}.d", b"", tarfile.DIRTYPE)],
    "device": lambda key, k: [(f"{key}.jpg", b"", tarfile.CHRTYPE)],
}  # fmt: skip
REFUSED = {
    "image twice": lambda key, k: [image(key), label(key, k), image(key)],
    "two images": lambda key, k: [image(key), image(key, "png"), label(key, k)],
    "two labels": lambda key, k: [image(key), label(key, k), label(key, k + 1, as_json=True)],
    "no label": lambda key, k: [image(key)],
    "dots": lambda key, k: [image(f"{key}.5"), label(f"{key}.5", k)],
    "apart": lambda key, k: [image(key), label(f"z{key}", k), label(key, k)],
}


@st.composite
def tars(draw: st.DrawFn) -> tuple[list[list[Part]], bool]:
    """The parts of joined archives, and whether a sample in them must be refused."""
    refused = draw(st.sampled_from([False, False, False, True]))
    kinds = draw(st.lists(st.sampled_from(sorted(ACCEPTED)), min_size=1, max_size=12))
    if refused:
        kinds.insert(draw(st.integers(0, len(kinds))), draw(st.sampled_from(sorted(REFUSED))))
    archives: list[list[Part]] = [[]]
    for number, kind in enumerate(kinds):
        make = ACCEPTED.get(kind) or REFUSED[kind]
        archives[-1] += make(f"k{number}", draw(st.integers(0, 4)))
        if draw(st.integers(0, 5)) == 0:
            archives.append([])
    return [parts for parts in archives if parts], refused


def packed(parts: list[Part], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content, kind in parts:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            else:
                info.linkname = content.decode()
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def plain_reading(path: Path) -> tuple[list[tuple[bytes, int]], int, int]:
    """Samples of a tar, the number of members that make them, and of all members but folders."""
    found: dict[str, dict[str, bytes]] = {}
    total = 0
    with tarfile.open(path, ignore_zeros=True) as archive:
        for member in archive:
            total += not member.isdir()
            try:
                opened = archive.extractfile(member)
            except KeyError:  # a link that leads nowhere
                continue
            hidden = any(part[0] in ".@" for part in member.name.split("/"))
            if opened is None or hidden or member.name.startswith("__"):
                continue
            folder, _, base = member.name.rpartition("/")
            key, dot, extension = base.partition(".")
            if dot:
                found.setdefault(f"{folder}/{key}", {})[extension.lower()] = opened.read()
    samples, used = [], 0
    for members in found.values():
        pictures = [members[e] for e in ("jpg", "png") if e in members]
        if pictures:
            number = members.get("cls") or json.loads(members["json"])["label"]
            samples.append((pictures[0], int(number)))
            used += 1 + ("cls" in members) + ("json" in members)
    return samples, used, total


# --- several shards, and what is beside them

NAMES = ["ant", "bee", "cät", "d e", "5"]
PATTERNS = {
    "folder": "",
    "braces": "s{{0..{last}}}.tar",
    "star": "s*.tar",
    "question": "s?.tar",
    "brackets": "s[0-9].tar",
    "braces and brackets": "{{s0,s[1-9]}}.tar",
}
COMPRESS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
BESIDE = ["text", "hidden", "apple", "thumbs", "gif", "hidden folder"]


class ShardPlan(NamedTuple):
    """How several shards are written."""

    shards: list[tuple[list[list[Part]], bool]]
    form: int
    pattern: str
    """How the shards are named: see `PATTERNS`."""
    names: int
    """Lines of `classes.txt`; 0: there is none."""
    damage: str
    place: float
    """Where the first shard is damaged, from 0 to 1."""
    beside: list[str]


@st.composite
def shard_sets(draw: st.DrawFn) -> ShardPlan:
    damages = ["gzip", "bzip2", "xz", "cut", "flipped header", "zeros"]
    return ShardPlan(
        draw(st.lists(tars(), min_size=2, max_size=4)),
        draw(st.sampled_from(FORMS)),
        draw(st.sampled_from(sorted(PATTERNS))),
        draw(st.sampled_from([0, 0, 5, 5, 3])),
        draw(st.sampled_from(damages)) if draw(st.integers(0, 3)) == 0 else "",
        draw(st.floats(0, 1)),
        draw(st.lists(st.sampled_from(BESIDE), max_size=2)),
    )


def spoiled(plan: ShardPlan, content: bytes, first: int) -> bytes:
    """The first shard, damaged; its first archive has `first` bytes."""
    if compress := COMPRESS.get(plan.damage):
        return compress(content)
    data = len(content[:first].rstrip(b"\0"))
    at = int(plan.place * (data - 1))
    if plan.damage == "cut":
        return content[: max(1, at)]
    if plan.damage == "flipped header":
        at = int(plan.place * 147)
        return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]
    return content[:at] + bytes(len(content) - at) if plan.damage == "zeros" else content


def write_shards(plan: ShardPlan, folder: Path) -> Odd:
    """Write the shards and what is beside them; then read them with tarfile."""
    root = folder / "shards"
    root.mkdir()
    paths = []
    for number, (archives, _refused) in enumerate(plan.shards):
        content = [packed(parts, plan.form) for parts in archives]
        whole = b"".join(content)
        path = root / f"s{number}.tar"
        path.write_bytes(spoiled(plan, whole, len(content[0])) if not number else whole)
        paths.append(path)
    if plan.names:
        (root / "classes.txt").write_text("\n".join(NAMES[: plan.names]), encoding="utf-8")
    for number, kind in enumerate(plan.beside):
        plant(os.fsencode(root), kind, number)
    pattern = PATTERNS[plan.pattern].format(last=len(paths) - 1)
    named = root / pattern if pattern else root
    # Zeros from some place on may have overwritten what was to be refused in the first shard.
    certain = plan.shards[plan.damage == "zeros" :]
    if any(refused for _archives, refused in certain) or plan.damage not in ("", "zeros"):
        return Odd(named, True, Counter(), 0, by_content=True)
    samples: Counter[tuple[bytes, str]] = Counter()
    largest, left = 0, 0
    for path in paths:
        try:
            found, used, total = plain_reading(path)
        except (tarfile.ReadError, ValueError, KeyError):  # of a damaged one
            return Odd(named, True, Counter(), 0, by_content=True)
        largest = max([largest, *(number for _content, number in found)])
        left += max(1, total) - used  # an empty tar counts
        for content, number in found:
            samples[content, NAMES[number] if plan.names else str(number)] += 1
    if named == root:
        left += len(set(root.iterdir()) - {*paths, root / "classes.txt"})
    refused = not samples or bool(plan.names and largest >= plan.names)
    unclear = plan.damage == "zeros"
    return Odd(named, refused and not unclear, samples, left, unclear=unclear, by_content=True)
