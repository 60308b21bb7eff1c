"""Random tars with planted oddities: samples and what is left out are all that a plain reader finds.

The reader is Python's tarfile, which goes on behind end marks. HVDTRAIN_ODD_DATASETS sets how many
tars are made (default 200).
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvdtrain.errors import DataError
from pipelines.sources.tar import TarShards, write_index
from tests.unit.pipelines.tar_samples import contents

COUNT = int(os.environ.get("HVDTRAIN_ODD_DATASETS", "200"))
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


@given(odd=tars(), form=st.sampled_from(FORMS), indexed=st.booleans())
@settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_is_lost_in_silence(odd, form, indexed):
    archives, refused = odd
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s.tar")
        path.write_bytes(b"".join(packed(parts, form) for parts in archives))
        if refused:
            with pytest.raises(DataError, match=r"s\.tar: "):
                TarShards(str(path), "data.train")
            return
        samples, used, total = plain_reading(path)
        if not samples:
            with pytest.raises(DataError, match="no images in the tar files"):
                TarShards(str(path), "data.train")
            return
        if indexed:
            write_index(str(path))
        source = TarShards(str(path), "data.train")
        assert [(bytes_, int(name)) for bytes_, name in contents(source)] == samples
        assert used + sum(source.left_out.counts.values()) == total


def test_samples_are_those_of_the_webdataset_library(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    parts = [part for k, make in enumerate(ACCEPTED.values()) for part in make(f"k{k}", k % 3)]
    links = (tarfile.LNKTYPE, tarfile.SYMTYPE)  # it passes over these, and reads hidden folders
    plain = [part for part in parts if part[2] not in links and not part[0].startswith(".c/")]
    path = tmp_path / "s.tar"
    path.write_bytes(packed(plain, tarfile.PAX_FORMAT))
    pictures: Counter[bytes] = Counter()
    for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
        picture = sample.get("jpg") or sample.get("png")
        if picture and not sample["__key__"].startswith("@eaDir"):
            pictures[picture] += 1
    assert pictures == Counter(picture for picture, _l in contents(TarShards(str(path), "x")))
