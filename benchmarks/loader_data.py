"""Prepares the images for `loader.py`, in the format that each loader reads."""

from __future__ import annotations

import tarfile
from importlib import import_module
from pathlib import Path

from PIL import Image

from pipelines.commands.pack import pack
from pipelines.commands.pack_options import PackOptions
from pipelines.sources import open_source
from pipelines.sources.folder import EXTENSIONS

SIDES = (160, 256)
"""Short sides of the pre-resized copies, px: for training at 128 and at 224 px."""


def prepare(images: Path, work: Path, most: int, threads: int) -> int:
    """Fill the folder `work` with at most `most` of the images below `images`; returns the number.

    original/, 160/, 256/   class folders; the originals are links
    packed/                 all three sizes as tar shards, as `hvdtrain data pack` writes them
    original.tar, 160.tar…  one tar file each; original.beton, 160.beton… for FFCV
    """
    count = sum(1 for _ in link(images, work / "original", most).rglob("*.*"))
    shard = -(-count // (2 * threads))
    options = PackOptions((*SIDES, None), shard_images=shard, threads=threads)
    pack(str(work / "original"), str(work / "packed"), options)
    for side in SIDES:
        _unpack(work, str(side))
    for name in ("original", *map(str, SIDES)):
        _tar(work, name)
        if importable("ffcv"):
            _beton(work, name, "jpg" if name == "original" else "raw", threads)
    return count


def link(images: Path, folder: Path, most: int) -> Path:
    """Link at most `most` of the images below `images` in class folders of `folder`; returns it."""
    files = [p for p in sorted(images.rglob("*")) if p.suffix.lower().encode() in EXTENSIONS]
    if not files:
        raise SystemExit(f"{images}: found no images")
    for number, file in enumerate(files[:: -(-len(files) // most)]):
        one = folder / file.parent.name / f"{number:06d}{file.suffix}"
        one.parent.mkdir(parents=True, exist_ok=True)
        one.symlink_to(file.resolve())
    return folder


def importable(package: str) -> bool:
    """Whether `package` can be imported."""
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def _unpack(work: Path, copy: str) -> None:
    """Write one packed copy as files in class folders."""
    source = open_source(str(work / "packed" / copy), "copy")
    for i in range(len(source)):
        file = work / copy / source.classes[source.labels[i]] / f"{i:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read(i).tobytes())


def _tar(work: Path, name: str) -> None:
    with tarfile.open(work / f"{name}.tar", "w", dereference=True) as tar:
        for number, file in enumerate(sorted((work / name).rglob("*.*"))):
            tar.add(file, f"{number:06d}.jpg")


class _Pictures:
    """Images of a folder as a dataset for FFCV's writer."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.rglob("*.*"))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.open(self._files[i]).convert("RGB"), 0


def _beton(work: Path, name: str, mode: str, threads: int) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode=mode), "label": IntField()}
    writer = DatasetWriter(str(work / f"{name}.beton"), fields, num_workers=threads)
    writer.from_indexed_dataset(_Pictures(work / name))
