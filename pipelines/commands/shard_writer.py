"""Writes one WebDataset shard."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

from hvdtrain.files import PartFile
from pipelines.sources.shards import BLOCK

_END = 2 * BLOCK  # zeros at the end of a tar file
_MAGIC = {
    b"\xff\xd8": "jpg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"P": "ppm",
}


class ShardWriter:
    """A tar file that gets its name when `close` is called, complete and synced.

    The same members give the same bytes: no times and users are stored.
    """

    def __init__(self, path: Path) -> None:
        self._file = PartFile(path)
        self.size = 0
        """Bytes written."""
        self.crc32 = 0
        """Of all bytes written."""

    def add(self, key: str, encoded: bytes | memoryview, label: int) -> int:
        """Append an image and its class number; returns the offset of the image's bytes."""
        offset = self._member(f"{key}.{_extension(bytes(encoded[:4]))}", encoded)
        self._member(f"{key}.cls", b"%d" % label)
        return offset

    def close(self) -> None:
        """Finish the file, sync it and give it its name."""
        self._write(b"\0" * _END)
        self._file.keep()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.discard()

    def _member(self, name: str, content: bytes | memoryview) -> int:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.size
        self._write(content)
        self._write(b"\0" * (-len(content) % BLOCK))
        return offset

    def _write(self, data: bytes | memoryview) -> None:
        self._file.file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self.size += len(data)


def _extension(head: bytes) -> str:
    """By the content, not the original name: other readers of shards rely on it."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "jp2")
