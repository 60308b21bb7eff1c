"""Tar shards to test with."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from pipelines.sources.base import Source


def make(path: Path, *files: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar file of `files`, as Python's own module writes it."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, label: object, image: bytes | None = None) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", image or key.encode()), (f"{key}.cls", str(label).encode())]


def contents(source: Source) -> list[tuple[bytes, str]]:
    return [
        (source.read(i).tobytes(), source.classes[source.labels[i]]) for i in range(len(source))
    ]
