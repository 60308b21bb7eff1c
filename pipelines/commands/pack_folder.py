"""The folder a dataset is packed into: what it may contain, and which shards are done.

During packing it has `.packing.json` (the settings) and `.parts/00000.npz` (a record of each
complete shard). At the end these become `index.npz` and `dataset.json`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zlib
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np

from hvdtrain.errors import DataError
from hvdtrain.files import whole_file
from pipelines.commands.pack_options import PackOptions
from pipelines.commands.reports import BadImage, PackedCopy, PackReport
from pipelines.sources import Source
from pipelines.sources.arrays import DamagedError, read_arrays
from pipelines.sources.base import Names, fingerprint
from pipelines.sources.left_out import printable
from pipelines.sources.packed import DATASET, FORMAT, INDEX, Packed, read_description

_SETTINGS = ".packing.json"
_PARTS = ".parts"
_LOCK = ".lock"
_BAD = "bad.txt"
_COLUMNS = ("rows", "files", "bad", "reasons")
_SHOWN = 10  # bad images named in a message


class Rejected(NamedTuple):
    """An image that cannot be packed."""

    sample: int
    reason: str


class PackingFolder:
    """The destination of packing, locked against other processes while the context lasts."""

    def __init__(self, src: str, dst: str, source: Source, options: PackOptions) -> None:
        self._root = Path(dst)
        self._src, self._dst = src, dst
        self._copies = options.copies
        self._lock: BinaryIO | None = None
        self._count = len(source)
        self._shard_images = options.shard_images
        self._settings = {
            "format": FORMAT,
            "source": source.fingerprint,
            "copies": {name: {"short_side": side} for name, side in self._copies.items()},
            "quality": options.quality,
            "shard_images": options.shard_images,
        }

    def __enter__(self) -> PackingFolder:
        """Lock the folder. Raises DataError if it must not be packed into."""
        root, src = self._root.resolve(), Path(self._src).resolve()
        if root == src or src in root.parents:
            raise DataError(
                f"DST: {self._root}: lies in SRC, which is only read; name another folder"
            )
        self._check_contents()
        if self.finished:
            return self
        self._root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            self._lock = undo.enter_context((self._root / _LOCK).open("wb"))
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(f"DST: {self._root}: another process is packing into it") from None
            if not self.finished:
                _write(self._root / _SETTINGS, json.dumps(self._settings).encode())
                for name in (_PARTS, *self._copies):
                    (self._root / name).mkdir(exist_ok=True)
            undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def finished(self) -> bool:
        """Whether the dataset is complete."""
        return (self._root / DATASET).is_file()

    def report(self) -> PackReport:
        """The dataset, once it is complete."""
        description = read_description(self._root, f"DST: {self._dst}")
        sizes = dict.fromkeys(description["copies"], 0)
        for name, file in description["files"].items():
            if name != INDEX:
                sizes[name.split("/")[0]] += file["size"]
        means = Packed(str(self._root), "DST").bytes_per_image()
        return PackReport(
            path=self._dst,
            images=description["images"],
            classes=len(description["classes"]),
            copies={
                name: PackedCopy(copy["short_side"], sizes[name], means[name])
                for name, copy in description["copies"].items()
            },
            skipped=[BadImage(**bad) for bad in description["skipped"]],
        )

    def samples(self, shard: int) -> range:
        """Ids of the samples of a shard, the bad ones included."""
        first = shard * self._shard_images
        return range(first, min(first + self._shard_images, self._count))

    def shard(self, copy: str, shard: int) -> Path:
        """The file of a shard."""
        return self._root / copy / f"{shard:05d}.tar"

    def missing(self, *, redo_bad: bool) -> list[int]:
        """The shards still to be made; with `redo_bad` also those in which images were bad."""
        return [shard for shard in range(self._shards) if not self._is_made(shard, redo_bad)]

    def record(
        self,
        shard: int,
        rows: list[tuple[int, ...]],
        files: list[tuple[int, int]],
        bad: list[Rejected],
    ) -> None:
        """Record that a shard is complete.

        `rows`: of each image id, height, width, then offset, size and crc32 in every copy;
        `files`: size and crc32 of the shard of every copy.
        """
        columns = 3 + 3 * len(self._copies)
        with whole_file(self._part(shard)) as file:
            np.savez(
                file,
                rows=np.array(rows, dtype=np.int64).reshape(-1, columns),
                files=np.array(files, dtype=np.int64),
                bad=np.array([b.sample for b in bad], dtype=np.int64),
                reasons=np.array([b.reason for b in bad], dtype=np.str_),
            )

    def finish(self, source: Source, *, skip_bad: bool) -> None:
        """Write index and description. Raises DataError with the bad images unless `skip_bad`."""
        parts = []
        for shard in range(self._shards):
            try:
                parts.append(read_arrays(self._part(shard), *_COLUMNS))
            except DamagedError as error:
                raise DataError(
                    f"DST: {self._part(shard)}: {error}; delete it, and pack again"
                ) from None
        bad = [
            (self._name(source, i), reason)
            for part in parts
            for i, reason in zip(part["bad"].tolist(), part["reasons"].tolist(), strict=True)
        ]
        rows = np.concatenate([part["rows"] for part in parts])
        if bad and (not skip_bad or not len(rows)):
            raise DataError(self._complaint(bad))
        columns = self._columns(source, parts, rows)
        with whole_file(self._root / INDEX) as file:
            np.savez(file, **columns)  # type: ignore[arg-type]
        names = Names(columns["names"].tobytes(), columns["name_ends"])
        crcs = [columns[f"{copy}.crc32"] for copy in self._copies]
        description = {
            **self._settings,
            "images": len(rows),
            "fingerprint": fingerprint(source.classes, columns["label"], names, *crcs),
            "classes": source.classes,
            "skipped": [{"name": name, "reason": reason} for name, reason in bad],
            "files": self._files(parts),
        }
        _write(
            self._root / "classes.txt", "\n".join(source.classes).encode("utf-8", "surrogateescape")
        )
        _write(self._root / DATASET, json.dumps(description, indent=1).encode())
        shutil.rmtree(self._root / _PARTS)
        for name in (_SETTINGS, _BAD, _LOCK):
            (self._root / name).unlink(missing_ok=True)

    @property
    def _shards(self) -> int:
        return -(-self._count // self._shard_images)

    def _part(self, shard: int) -> Path:
        return self._root / _PARTS / f"{shard:05d}.npz"

    def _is_made(self, shard: int, redo_bad: bool) -> bool:
        if not self._part(shard).is_file():
            return False
        try:
            return not (redo_bad and len(read_arrays(self._part(shard), *_COLUMNS)["bad"]))
        except DamagedError:
            return False

    def _check_contents(self) -> None:
        """Raise DataError unless the folder is empty, or was packed with the same settings."""
        file = self._root / (DATASET if self.finished else _SETTINGS)
        try:
            if not set(os.listdir(self._root)) - {_LOCK, f".{_SETTINGS}.part"}:  # noqa: PTH208
                return
            known = dict(json.loads(file.read_bytes()))
        except NotADirectoryError:
            raise DataError(f"DST: {self._root}: a file, not a folder") from None
        except FileNotFoundError:
            if self._root.exists():
                raise DataError(
                    f"DST: {self._root}: holds something else; name an empty or new folder"
                ) from None
            return
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"DST: {file}: damaged ({error}); name another folder") from None
        differing = [key for key, value in self._settings.items() if known.get(key) != value]
        if differing:
            state = "was packed" if self.finished else "is half packed"
            raise DataError(
                f"DST: {self._root}: {state} with another {', '.join(differing)}; "
                "name another folder, or delete it"
            )

    def _columns(
        self, source: Source, parts: list[dict[str, np.ndarray]], rows: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The arrays of the index."""
        ids = rows[:, 0]
        names = Names.of([os.fsencode(self._name(source, i)) for i in ids.tolist()])
        counts = [len(part["rows"]) for part in parts]
        columns = {
            "label": source.labels[ids],
            "name_ends": names.ends,
            "names": np.frombuffer(names.block, dtype=np.uint8),
            "shard_starts": np.cumsum([0, *counts[:-1]]),
            "height": rows[:, 1].astype(np.uint32),
            "width": rows[:, 2].astype(np.uint32),
        }
        for k, copy in enumerate(self._copies):
            columns[f"{copy}.offset"] = rows[:, 3 + 3 * k].copy()
            columns[f"{copy}.size"] = rows[:, 4 + 3 * k].astype(np.uint32)
            columns[f"{copy}.crc32"] = rows[:, 5 + 3 * k].astype(np.uint32)
        return columns

    def _files(self, parts: list[dict[str, np.ndarray]]) -> dict[str, dict[str, int]]:
        """Size and crc32 of all files, by name below the folder; shards in order."""
        index = (self._root / INDEX).read_bytes()
        files = {INDEX: {"size": len(index), "crc32": zlib.crc32(index)}}
        for k, copy in enumerate(self._copies):
            for shard, part in enumerate(parts):
                size, crc32 = part["files"][k].tolist()
                name = self.shard(copy, shard).relative_to(self._root)
                files[str(name)] = {"size": size, "crc32": crc32}
        return files

    def _name(self, source: Source, i: int) -> str:
        """The name of sample `i` without the path of the source."""
        return source.name(i).removeprefix(self._src).lstrip("/:")

    def _complaint(self, bad: list[tuple[str, str]]) -> str:
        lines = [f"{name}: {reason}" for name, reason in bad]
        listed = self._root / _BAD
        _write(listed, ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
        if len(lines) > _SHOWN:
            lines[_SHOWN:] = [f"… ({len(lines) - _SHOWN} more)"]
        head = (
            f"SRC: {len(bad)} of {self._count} images cannot be decoded, all listed in {listed}: "
            "repair or remove them, or add --skip-bad to leave them out"
        )
        return "\n".join([head, *map(printable, lines)])


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)
