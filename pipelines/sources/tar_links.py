"""Hard and symbolic links inside a tar file lead to the file's bytes."""

from __future__ import annotations

import posixpath
from bisect import bisect_left
from collections.abc import Iterable, Iterator

from pipelines.sources.left_out import LeftOut
from pipelines.sources.shards import ShardReader
from pipelines.sources.tar_members import Entry, entries

_HOPS = 40  # links that lead to links; as the kernel has it


def members(reader: ShardReader, shard: int, left_out: LeftOut) -> Iterator[Entry]:
    """The files of one shard, in order; links are files with the bytes of what they lead to.

    Links that lead to no file in the tar, and devices, are counted in `left_out`. Raises DataError
    if the shard is damaged.
    """
    targets: _Targets | None = None
    for entry in entries(reader, shard):
        if entry.kind == "file":
            yield entry
        elif entry.kind == "other":
            left_out.add("devices", entry.name)
        else:
            targets = targets or _Targets(entries(reader, shard))
            found = targets.file(entry)
            if found is None:
                left_out.add("links to no file in the tar", entry.name)
            else:
                yield entry._replace(offset=found.offset, size=found.size, head=b"")


class _Targets:
    """All files and links of a shard by name."""

    def __init__(self, all_entries: Iterable[Entry]) -> None:
        self._by_name: dict[bytes, list[Entry]] = {}
        for entry in all_entries:
            if entry.kind != "other":
                name = posixpath.normpath(entry.name)
                self._by_name.setdefault(name, []).append(entry._replace(head=b""))

    def file(self, link: Entry) -> Entry | None:
        """What `link` leads to; None if that is no file in this tar.

        As when it is unpacked: a hard link is to the member of that name before it, a symbolic link
        to the last one.
        """
        entry = link
        for _ in range(_HOPS):
            if entry.kind == "file":
                return entry
            name = entry.target
            if entry.kind == "soft":
                name = posixpath.join(posixpath.dirname(entry.name), name)
            found = self._by_name.get(posixpath.normpath(name), [])
            if entry.kind == "hard":
                found = found[: bisect_left(found, entry.offset, key=lambda e: e.offset)]
            if not found:
                return None
            entry = found[-1]
        return None
