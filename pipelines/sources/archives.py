"""Compressed files and archives, recognised by their first bytes, whatever their name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from pathlib import Path

_MAGIC = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"\x1f\x9d": ("compress", "uncompress"),
    b"LZIP": ("lzip", "lzip -d"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
    b"Rar!": ("rar", "unrar x"),
}
_OPENERS = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}
_ARCHIVES = ("zip", "7z", "rar")
_HEAD = 1 << 16  # bytes of an archive in which its first names are looked for
_BLOCK = 512
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""What the names of compressed tar files end with."""


def kind(path: str) -> str:
    """How a file is compressed, or `tar`; empty for anything else. Reads 512 bytes."""
    start = _start(path)
    for magic, (name, _command) in _MAGIC.items():
        if start.startswith(magic):
            return name
    if start[257:262] == b"ustar" or (start[:1] not in (b"", b"\0") and _is_v7(start)):
        return "tar"
    return ""


def refusal(path: str) -> str | None:
    """Why a compressed file cannot be read, in one line; None for one that is not compressed."""
    found = kind(path)
    command = next((c for name, c in _MAGIC.values() if name == found), None)
    if command is None:
        return None
    if found in _ARCHIVES:
        return f"a {found} archive; unpack it ({command}) and give the folder"
    return (
        f"compressed by {found}; images are read at random places, which needs plain tar shards "
        f"or a folder: decompress it ({command}), or unpack it"
    )


def first_names(path: str) -> list[str]:
    """Names of the first files in a tar file, compressed or not; looks at 64 KiB of it."""
    found: list[str] = []
    try:
        opener = _OPENERS.get(kind(path), io.FileIO)
        with opener(path, "rb") as file:
            head = file.read(_HEAD)
        with tarfile.open(fileobj=io.BytesIO(head), mode="r:") as archive:
            for member in archive:
                if not member.isdir():
                    found.append(member.name)  # noqa: PERF401 - what comes before damage counts
    # what tarfile and the decompressors raise on damaged input is not documented in full
    except Exception:  # noqa: BLE001
        return found
    return found


def _start(path: str) -> bytes:
    """The first block of a regular file; empty for anything else."""
    if not Path(path).is_file():
        return b""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""  # what reads the path says why
    try:
        return os.read(file, _BLOCK)
    except OSError:
        return b""
    finally:
        os.close(file)


def _is_v7(start: bytes) -> bool:
    """Whether a block is the header of an old tar file, which has no mark but its checksum."""
    digits = start[148:156].split(b"\0")[0].strip()
    if len(start) < _BLOCK or not digits.isdigit() or not digits.isascii() or b"8" in digits:
        return False
    return b"9" not in digits and int(digits, 8) == sum(start) - sum(start[148:156]) + 256
