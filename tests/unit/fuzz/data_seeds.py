"""Valid datasets of every kind, and how each is read."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from pipelines.commands.pack import pack
from pipelines.commands.pack_options import PackOptions
from pipelines.commands.scan import scan
from pipelines.sources.opening import open_source
from pipelines.sources.tar import write_index
from tests.unit.fuzz.reader import Reader, in_zip


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (shade, 40, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_images(root: Path) -> None:
    for k in range(4):
        folder = root / "images" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.jpg").write_bytes(jpeg(50 * k))


def some_read(path: Path) -> Callable[[], object]:
    """Opens a dataset and reads some of its images."""

    def read() -> object:
        source = open_source(str(path), "data.train")
        return [
            (source.name(i), source.labels[i], source.read(i)) for i in range(min(len(source), 3))
        ]

    return read


def datasets(root: Path) -> dict[str, Reader]:
    """Readers of datasets: lists, tar shards, their index, a manifest, packed sets."""
    write_images(root)
    names = [f"images/{'ab'[k % 2]}/{k}.jpg" for k in range(4)]
    table = "path,label\n" + "".join(f"{name},{name[7]}\n" for name in names)
    lists = {
        "list.csv": table.encode(),
        "quoted.csv": "".join(f'"{name}";"é, {name[7]}"\r\n' for name in names).encode(),
        "list.tsv": table.replace(",", "\t").encode("utf-16"),
        "list.txt": "".join(f"{name} {k % 2}\n" for k, name in enumerate(names)).encode(
            "utf-8-sig"
        ),
    }
    found = {}
    for name, content in lists.items():
        (root / name).write_bytes(content)
        found[name] = Reader(root / name, some_read(root / name))
    (root / "flat").mkdir()
    for k in range(3):
        (root / f"flat/{k}.jpg").write_bytes(jpeg(k))
    (root / "flat/labels.csv").write_text("0.jpg,0\n1.jpg,1\n2.jpg,1\n")
    found["labels.csv"] = Reader(root / "flat/labels.csv", some_read(root / "flat"))

    (root / "shards").mkdir()
    with tarfile.open(root / "shards/a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for k in range(2):
            label = ("json", b'{"label": 1, "more": [1, {"a": null}]}') if k else ("cls", b"0")
            for ending, content in (("jpg", jpeg(k)[:300]), label):
                member = tarfile.TarInfo(f"{'long/' * 30 if k else ''}{k}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    tar = (root / "shards/a.tar").read_bytes().rstrip(b"\0")
    tar += bytes(-len(tar) % 512 + 1024)  # not the usual ten kilobytes of zeros
    (root / "shards/a.tar").write_bytes(tar)
    (root / "shards/classes.txt").write_text("n01 cat\nn02 dog\n")
    found["tar"] = Reader(root / "shards/a.tar", some_read(root / "shards"))
    found["classes.txt"] = Reader(root / "shards/classes.txt", some_read(root / "shards"))
    (root / "indexed").mkdir()
    (root / "indexed/a.tar").write_bytes(tar)
    write_index(str(root / "indexed"))
    index = root / "indexed/.hvdtrain-index.npz"
    found["tar index"] = Reader(index, some_read(root / "indexed"))
    found["in tar index"] = Reader(index, some_read(root / "indexed"), in_zip)

    (root / "scanned").mkdir()
    write_images(root / "scanned")
    scan(str(root / "scanned/images"), None, 1)
    manifest = root / "scanned/images/.hvdtrain-scan.npz"
    found["manifest"] = Reader(manifest, some_read(root / "scanned/images"))
    found["in manifest"] = Reader(manifest, some_read(root / "scanned/images"), in_zip)

    pack(str(root / "images"), str(root / "packed"), PackOptions((None, 8), threads=1))
    about, packed = root / "packed/dataset.json", some_read(root / "packed")
    [arrays] = (root / "packed").glob("*.npz")

    def packed_anew() -> object:
        """With the right size and checksum of the index in the description."""
        content, described = arrays.read_bytes(), about.read_bytes()
        files = json.loads(described)
        files["files"][arrays.name] = {"size": len(content), "crc32": zlib.crc32(content)}
        about.write_text(json.dumps(files))
        try:
            return packed()
        finally:
            about.write_bytes(described)

    found["dataset.json"] = Reader(about, packed)
    found["packed index"] = Reader(arrays, packed)
    found["in packed index"] = Reader(arrays, packed_anew, in_zip)
    return found
