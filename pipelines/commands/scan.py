"""Scanning: every image of a dataset is decoded once, counted and checked."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hvdtrain.config.data import Columns
from hvdtrain.errors import DataError, ResourceError
from hvdtrain.files import PartFile
from pipelines.commands.channels import Measuring, drawn
from pipelines.commands.reports import BadImage, Duplicates, ScanReport, ShortSides
from pipelines.commands.resizer import MOMENTS, Resizer, Size
from pipelines.images.headers import HeaderError, image_size
from pipelines.sources import Source, open_source
from pipelines.sources.folder import Unlabelled
from pipelines.sources.left_out import left_out_of
from pipelines.sources.packed import Packed
from pipelines.sources.remote.paths import require_local
from pipelines.sources.scanned import MANIFEST, manifest_path, write_manifest

_CHUNK = 64  # images that are read while the chunk before is decoded


class _Look(NamedTuple):
    """One image that was read and is not decoded yet."""

    encoded: np.ndarray | None
    size: Size
    mode: str
    """PIL's names of its format and mode."""
    content: int
    """64 bits of the sha256 of its bytes."""
    reason: str
    """What is wrong with it; empty if nothing is so far."""


def scan(
    path: str,
    output: Path | None,
    threads: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    columns: Columns | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> ScanReport:
    """Decode all images of the dataset at `path` and write a manifest.

    The manifest holds a crc32 for every image and the list of bad ones. It is written to `output`,
    or to where `open_source` looks for it; where that is read-only, into the current folder, which
    `tell` is told before the first image is decoded. A packed dataset has its own checksums and gets
    a manifest only if `output` is given, and so does a folder without labels.
    `progress(images done, all images)`; `columns`: those of a list.
    Raises DataError where there is no dataset, ResourceError where `output` cannot be written. A
    disk that refuses the manifest in the end is in the report.
    """
    require_local(path, "PATH")
    source = open_source(path, "PATH", check=False, columns=columns, unlabelled=True)
    manifest = _place(path, output, source, tell)
    findings = _Findings(source)
    resizer = Resizer([], threads)
    chunks = [range(k, min(k + _CHUNK, len(source))) for k in range(0, len(source), _CHUNK)]
    with ThreadPoolExecutor(threads, thread_name_prefix="hvdtrain-scan") as pool:
        reading = pool.map(lambda i: _look(source, i), chunks[0])
        for number, chunk in enumerate(chunks):
            looks = list(reading)
            if number + 1 < len(chunks):
                reading = pool.map(lambda i: _look(source, i), chunks[number + 1])
            findings.add(chunk, looks, resizer)
            progress(chunk.stop, len(source))
    resizer.close()
    fault = None
    if manifest is not None:
        try:
            write_manifest(manifest, source, path, findings.columns, findings.bad)
        except OSError as error:
            fault = f"{manifest}: cannot be written: {error.strerror}"
    return findings.report(path, None if fault else manifest, fault)


def _place(
    path: str, output: Path | None, source: Source, tell: Callable[[str], None]
) -> Path | None:
    """Where the manifest goes. Raises ResourceError if `output` cannot be written."""
    if output is not None:
        if problem := _refusal(output):
            raise ResourceError(
                f"--output: {output}: cannot be written: {problem}; name another file"
            )
        return output
    if isinstance(source, (Packed, Unlabelled)):
        return None
    usual = manifest_path(path)
    problem = _refusal(usual)
    if problem is None:
        return usual
    name = Path(os.path.abspath(path)).name  # noqa: PTH100 - links are not resolved
    own = Path(f"{name}{MANIFEST}")
    where = f"{path}: no manifest can be written beside the images ({problem})"
    if refused := _refusal(own):
        tell(f"{where}, nor here ({refused}): there will be only the report")
        return None
    tell(f"{where}: it will be {own}, which training does not look for")
    return own


def _refusal(file: Path) -> str | None:
    """Why `file` cannot be written; None if it can."""
    try:
        PartFile(file).discard()
        return "a folder" if file.is_dir() else None
    except OSError as error:
        return error.strerror or str(error)


def _look(source: Source, i: int) -> _Look:
    """Read image `i` and its header; runs in a reader thread."""
    try:
        encoded = source.read(i)
    except DataError as error:
        return _Look(None, (0, 0), "", 0, str(error).removeprefix(f"{source.name(i)}: "))
    content = int.from_bytes(hashlib.sha256(encoded.data).digest()[:8], "little")
    try:
        size = image_size(encoded)
        with Image.open(io.BytesIO(encoded.data)) as image:
            mode = f"{image.format} {image.mode}"
    except HeaderError as error:
        return _Look(encoded, (0, 0), "", content, str(error))
    except Exception as error:  # noqa: BLE001 - PIL raises many kinds on damaged data
        return _Look(encoded, (0, 0), "", content, f"damaged ({error})")
    return _Look(encoded, size, mode, content, "")


class _Findings:
    """What the scan has found so far."""

    def __init__(self, source: Source) -> None:
        self._source = source
        count = len(source)
        self.columns: dict[str, np.ndarray] = {
            "crc32": np.zeros(count, dtype=np.uint32),
            "size": np.zeros(count, dtype=np.uint32),
            "height": np.zeros(count, dtype=np.uint32),
            "width": np.zeros(count, dtype=np.uint32),
            "content": np.zeros(count, dtype=np.uint64),
        }
        self.bad: dict[int, str] = {}
        self._modes: Counter[str] = Counter()
        self._measured, self._measuring = drawn(count), Measuring()

    def add(self, ids: range, looks: list[_Look], resizer: Resizer) -> None:
        """Decode the images that were read of samples `ids`, and count them."""
        good = [(i, look) for i, look in zip(ids, looks, strict=True) if not look.reason]
        encoded = [look.encoded for _i, look in good if look.encoded is not None]
        measured = [bool(self._measured[i]) for i, _look in good]
        decoded = resizer(encoded, [look.size for _i, look in good], measured)
        for (i, look), result in zip(good, decoded, strict=True):
            if isinstance(result, str):
                self.bad[i] = result
            else:
                self._modes[look.mode] += 1
                if MOMENTS in result:
                    self._measuring.add(result[MOMENTS])
        for i, look in zip(ids, looks, strict=True):
            if look.reason:
                self.bad[i] = look.reason
            if look.encoded is not None:
                self.columns["crc32"][i] = zlib.crc32(look.encoded.data)
                self.columns["size"][i] = len(look.encoded)
            self.columns["height"][i], self.columns["width"][i] = look.size
            self.columns["content"][i] = look.content

    def report(self, path: str, manifest: Path | None, fault: str | None) -> ScanReport:
        """Counts and lists, once all images are added."""
        source = self._source
        good = np.ones(len(source), dtype=bool)
        good[list(self.bad)] = False
        duplicates = self._duplicates(good)
        counts = np.bincount(source.labels, minlength=len(source.classes)).tolist()
        short = np.minimum(self.columns["height"], self.columns["width"])[good]
        return ScanReport(
            path=path,
            manifest=None if manifest is None else str(manifest),
            images=len(source),
            size_bytes=int(self.columns["size"].sum(dtype=np.int64)),
            class_counts=dict(zip(source.classes, counts, strict=False)),  # none without labels
            modes=dict(self._modes.most_common()),
            short_side=ShortSides(
                min=int(short.min(initial=2**31)) if len(short) else 0,
                median=int(np.median(short)) if len(short) else 0,
                max=int(short.max(initial=0)),
            ),
            duplicates=[
                Duplicates(
                    names=[source.name(i) for i in group],
                    classes=self._classes(group),
                )
                for group in duplicates
            ],
            conflicts=sum(len(set(source.labels[group].tolist())) > 1 for group in duplicates),
            bad=[BadImage(source.name(i), reason) for i, reason in sorted(self.bad.items())],
            left_out=left_out_of(source),
            channels=self._measuring.channels(),
            manifest_fault=fault,
        )

    def _classes(self, group: list[int]) -> list[str]:
        """The classes of samples, sorted; none without labels."""
        classes = self._source.classes
        return sorted({classes[self._source.labels[i]] for i in group}) if classes else []

    def _duplicates(self, good: np.ndarray) -> list[list[int]]:
        """Groups of good samples with the same content."""
        ids = np.flatnonzero(good)
        content = self.columns["content"][ids]
        order = np.argsort(content, kind="stable")
        groups = np.split(ids[order], np.flatnonzero(np.diff(content[order])) + 1)
        return sorted(group.tolist() for group in groups if len(group) > 1)
