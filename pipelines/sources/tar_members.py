"""The members of a tar file with their places, as `tar -i` lists them.

Formats: v7, ustar, star, GNU (long names, sizes in binary) and pax (x and g headers). Archives that
were joined (`cat a.tar b.tar`) are read one after the other. Nothing is guessed: a header with a
wrong checksum, a missing end and zeros where members should be are refused with their place.
Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic
Tar Format".
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hvdtrain.errors import DataError
from pipelines.sources.left_out import printable
from pipelines.sources.shards import BLOCK, ShardReader

_PEEK = 4 * BLOCK  # bytes read at once: a small member and the header after it
_EXTRA = 1 << 20  # longest long name or pax header in bytes
_ZEROS = bytes(BLOCK)
_USUAL_END = 21 * BLOCK
_LONGEST_END = (1 << 20) + BLOCK  # zeros after the last member: records of 1 MiB at most
_RECORDS = (1, 8, 20, *(1 << k for k in range(5, 12)))
"""Blocks in a record, which the end of an archive is filled up to: 20 by default."""
_OCTAL = re.compile(rb" *([0-7]*) *(\0.*)?", re.DOTALL)
_FILES = frozenset(b"0\x007")
_LINKS = frozenset(b"12")
_WITHOUT_CONTENT = frozenset(b"123456")
_FOLDERS_AND_LABELS = frozenset(b"5DV")
_ADLER = 65521


class Entry(NamedTuple):
    """A file, link or device in a tar file."""

    name: bytes
    offset: int
    """First byte of its contents in the tar file."""
    size: int
    head: bytes
    """Its first bytes; all of them if it is small."""
    kind: str
    """file, hard (link), soft (link) or other."""
    target: bytes
    """What a link leads to."""
    archive: int
    """Number of the archive, where several were joined in one file."""


def entries(reader: ShardReader, shard: int) -> Iterator[Entry]:
    """The files, links and devices of one shard, in order. Raises DataError if it is damaged."""
    blocks = _Blocks(reader, shard)
    place = start = archive = 0
    own: dict[bytes, bytes] = {}
    shared: dict[bytes, bytes] = {}
    while not blocks.at_end(place, start):
        header = blocks.block(place)
        if header == _ZEROS:
            if own:
                raise blocks.error(place, "nothing follows a long name or pax header")
            place = start = blocks.after_end_mark(start, place)
            archive += 1
            continue
        size = _size(header, blocks, place)
        kind, offset = header[156], place + BLOCK
        if kind in b"LKxXg":
            records = _records(kind, blocks.extra(offset, size), blocks, offset)
            if kind == ord("g"):
                shared |= records
            else:
                own = {**records, **own}
            place = offset + -(-size // BLOCK) * BLOCK
            continue
        name, target = _name(header), b""
        if own or shared:
            extra = {**shared, **own}
            name = extra.get(b"path") or name
            size = _pax_size(extra, size, blocks, place)
            target = extra.get(b"linkpath", b"")
            if b"GNU.sparse" in extra:
                raise _sparse(blocks, place, name)
            own = {}
        is_folder = kind == 0 and name.endswith(b"/")  # v7 has no type for folders
        if kind in _WITHOUT_CONTENT or is_folder:
            size = 0
        blocks.check_whole(name, offset, size)
        if kind in b"SM":
            raise _sparse(blocks, place, name)
        if kind not in _FOLDERS_AND_LABELS and not is_folder:
            head = blocks.known(offset, size) if kind in _FILES else b""
            target = target or (header[157:257].split(b"\0", 1)[0] if kind in _LINKS else b"")
            yield Entry(name, offset, size, head, _kind(kind), target, archive)
        place = offset + -(-size // BLOCK) * BLOCK
    if own:
        raise blocks.error(place, "nothing follows a long name or pax header")


class _Blocks:
    """The blocks of one shard, of which some are read at once."""

    def __init__(self, reader: ShardReader, shard: int) -> None:
        self._reader, self._shard = reader, shard
        self.end = reader.size_bytes(shard)
        self._buffer = np.empty(_PEEK, dtype=np.uint8)
        self._window, self._at = b"", 0

    def error(self, place: int, text: str) -> DataError:
        """`text`, with the shard and the place."""
        return DataError(f"{self._reader.paths[self._shard]}: at byte {place}: {text}")

    def at_end(self, place: int, start: int) -> bool:
        """Whether the file ends here, after an end mark. Raises DataError if without one."""
        if place + BLOCK <= self.end:
            return False
        if not self.end:
            raise self.error(0, "an empty file; expected a tar file")
        if place == start and place == self.end:
            return True
        raise self.error(place, "cut short: it has no end mark")

    def block(self, place: int) -> bytes:
        """The block at `place`."""
        if not self._at <= place <= self._at + len(self._window) - BLOCK:
            count = self._reader.read_into(self._shard, place, self._buffer)
            self._window, self._at = self._buffer[:count].tobytes(), place
            if count < BLOCK:
                raise self.error(place, "cut short while it was read")
        return self._window[place - self._at : place - self._at + BLOCK]

    def known(self, offset: int, size: int) -> bytes:
        """The bytes from `offset` on that are read already, `size` at most."""
        return self._window[offset - self._at : offset - self._at + size]

    def extra(self, offset: int, size: int) -> bytes:
        """The content of a long name or pax header."""
        if size > _EXTRA:
            raise self.error(offset - BLOCK, f"a pax header or long name of {size:,} bytes")
        self.check_whole(b"a pax header or long name", offset, size)
        return self._reader.read(self._shard, offset, size).tobytes()

    def check_whole(self, name: bytes, offset: int, size: int) -> None:
        """Raises DataError unless the file is long enough for this member."""
        if offset + size > self.end:
            there = max(0, self.end - offset)
            found = f"{there:,} of {size:,} bytes are there" if size < 1 << 62 else "no such size"
            text = f"cut short within {printable(os.fsdecode(name))!r}: {found}"
            raise self.error(offset - BLOCK, text)

    def after_end_mark(self, start: int, place: int) -> int:
        """Where the zeros from `place` on end: the next archive, or the end of the file.

        Raises DataError if there are more zeros than at the end of an archive that begins at
        `start`: an unfinished download, for example.
        """
        after = None
        for size in (_USUAL_END, _LONGEST_END):
            zeros = np.empty(size + BLOCK, dtype=np.uint8)
            zeros = zeros[: self._reader.read_into(self._shard, place, zeros)]
            if zeros.any():
                after = place + int((zeros != 0).argmax()) // BLOCK * BLOCK
            elif place + len(zeros) >= self.end:
                after = self.end
            if after is not None:
                break
        if after is None or not _is_end(-(-(after - start) // BLOCK), -(-(after - place) // BLOCK)):
            number = "more than a million" if after is None else f"{after - place:,}"
            text = f"{number} zero bytes, more than an end mark has: is it an unfinished download?"
            raise self.error(place, text)
        return after


def _is_end(blocks: int, zeros: int) -> bool:
    """Whether an archive of that many blocks may end in so many zero blocks."""
    return any(blocks % record == 0 and zeros <= record + 1 for record in _RECORDS)


def _size(header: bytes, blocks: _Blocks, place: int) -> int:
    """Length of the member. Raises DataError if this is no header."""
    sum_field, field = _OCTAL.fullmatch(header[148:156]), header[124:136]
    if sum_field is None or not _sums_up(header, int(sum_field[1] or b"0", 8)):
        raise blocks.error(place, "not a tar file, or damaged")
    if field[0] & 0x80 and not field[0] & 0x40:  # GNU: binary, for 8 GiB and more
        return int.from_bytes(field, "big") & ~(0x80 << 88)
    digits = _OCTAL.fullmatch(field)
    if digits is None:
        raise blocks.error(place, "damaged: the size of a member is not a number")
    return int(digits[1] or b"0", 8)


def _sums_up(header: bytes, expected: int) -> bool:
    """Whether the checksum is right: the sum of all bytes, with its own field as blanks."""
    blank = header[:148] + b"        " + header[156:]
    if zlib.adler32(blank) & 0xFFFF == (expected + 1) % _ADLER:  # its lower half is 1 + the sum
        return True
    signed = sum(blank) - 256 * sum(byte > 127 for byte in blank)  # some old tars
    return signed == expected


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[345] and header[257:263] == b"ustar\0":
        end = 476 if header[508:512] == b"tar\0" else 500  # star has times after its prefix
        name = header[345:end].split(b"\0", 1)[0] + b"/" + name
    return name


def _kind(kind: int) -> str:
    if kind in _FILES:
        return "file"
    return {ord("1"): "hard", ord("2"): "soft"}.get(kind, "other")


def _sparse(blocks: _Blocks, place: int, name: bytes) -> DataError:
    shown = printable(os.fsdecode(name))
    return blocks.error(
        place, f"{shown}: a sparse or split file; make the tar without --sparse or -M"
    )


def _records(kind: int, content: bytes, blocks: _Blocks, place: int) -> dict[bytes, bytes]:
    """What a GNU (L, K) or pax entry says of the members that follow: path, linkpath, size."""
    if kind in b"LK":
        key = b"path" if kind == ord("L") else b"linkpath"
        return {key: content.split(b"\0", 1)[0]}
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(content) and content[at]:  # "LENGTH key=value\n"
        blank = content.find(b" ", at, at + 20)
        digits = content[at:blank] if blank >= 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        if not blank < end <= len(content) or content[end - 1 : end] != b"\n":
            raise blocks.error(place + at, "damaged: not a pax record")
        key, _, value = content[blank + 1 : end - 1].partition(b"=")
        if key in (b"path", b"linkpath", b"size"):
            found[key] = value
        elif key.startswith(b"GNU.sparse"):
            found[b"GNU.sparse"] = value
        at = end
    return found


def _pax_size(records: dict[bytes, bytes], size: int, blocks: _Blocks, place: int) -> int:
    digits = records.get(b"size")
    if not digits:
        return size
    if not digits.isdigit() or len(digits) > 20:
        raise blocks.error(place, "damaged: the size in a pax header is not a number")
    return int(digits)
