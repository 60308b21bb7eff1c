"""The mirror of a run in an object store.

The names are those of a mirror in a folder. A store cannot rename: the metadata of a checkpoint are
uploaded last, when all else was read again, and deleted first. A checkpoint without them is an
unfinished upload.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hvdtrain.checkpoint_files import (
    FILES,
    MAX_META_BYTES,
    META,
    NAME,
    NEW,
    OPTIONAL,
    parse_meta,
)
from hvdtrain.checkpoint_keep import Keep, why_kept
from hvdtrain.errors import CheckpointError
from hvdtrain.files import open_regular, whole_file
from hvdtrain.paths import RunPaths
from hvdtrain.run.mirror_owner import OWNER, Owner, owner_file, owner_for, owner_in
from hvdtrain.run.mirror_places import (
    DESCRIPTION,
    Copy,
    DamagedCopy,
    fault,
    new_checkpoint,
    opened,
    seal,
)
from hvdtrain.run.object_store import CHUNK, ObjectStore, StoreError

FOLDER = "checkpoints"
KNOWN = (META, *FILES, *OPTIONAL)
"""The files of a checkpoint: no others are deleted. The metadata come first."""
MAX_OWNER_BYTES = 2**16


class _Listed(NamedTuple):
    """A checkpoint whose metadata are in the store."""

    name: str
    number: int
    """-1: its metadata are damaged, or files are missing."""
    seal: str
    results: dict[str, float | None]
    """Of the evaluation before it: top1 and loss."""
    files: frozenset[str]


class Store:
    """A mirror below a URL."""

    remote = True

    def __init__(self, url: str, name: str, beat: Callable[[], None] | None = None) -> None:
        """`beat`: see `ObjectStore`. Raises ConfigError if the package for the URL is missing."""
        self.root = f"{url}/{name}"
        self._store = ObjectStore(self.root, beat)
        self._listed: dict[str, _Listed] = {}
        self._described: dict[str, str] = {}

    def owner(self) -> Owner:
        try:
            return owner_in(self._store.read(OWNER, MAX_OWNER_BYTES))
        except StoreError as error:
            if error.missing:
                return Owner("", "")
            raise

    def claim(self, paths: RunPaths) -> None:
        owner = owner_for(paths, self.root, self.owner() if self._store.list() else None)
        # Written in any case: whether writing is allowed is known from the start.
        self._store.write_bytes(OWNER, owner_file(owner))
        self._listed, self._described = {}, {}

    def release(self) -> None:
        """Nothing is held: a store has no locks."""

    def describe(self, paths: RunPaths) -> None:
        for path in (getattr(paths, name) for name in DESCRIPTION):
            if not path.exists():
                continue
            with open_regular(path) as file:
                digest = _digest(file)
                if self._described.get(path.name) != digest:
                    self._store.write(path.name, file)
                    self._described[path.name] = digest

    def copies(self) -> list[Copy]:
        self._list()
        return [Copy(one.name, one.seal) for one in self._newest()]

    def prune(self, names: set[str], keep: Keep) -> None:
        folders = self._list()
        found = {Path(one.name): one for one in self._newest()}
        kept = why_kept([*found], keep, lambda path, key: found[path].results[key])
        kept_names = names | {path.name for path in kept}
        for name in folders:
            if name not in kept_names:
                self._remove(name)

    def put(self, path: Path) -> str:
        base = path.name.removesuffix(NEW)
        pair = [self._listed[name] for name in (base, base + NEW) if name in self._listed]
        taken = {one.name for one in pair}
        # The one that is there counts until the new one does.
        name = next((one for one in (base, base + NEW) if one not in taken), "")
        if not name:
            name = min(pair, key=lambda one: one.number).name
            self._remove(name)
        with contextlib.ExitStack() as stack:
            files = opened(path, stack)
            data = files.pop(META).read(MAX_META_BYTES + 1)
            meta = parse_meta(data, path / META)
            for file, source in files.items():
                self._store.write(f"{FOLDER}/{name}/{file}", source)
            sizes = {file: source.seek(0, 2) for file, source in files.items()}
        for file, written in sorted(meta["sha256"].items()):
            if self._remote_digest(f"{FOLDER}/{name}/{file}", sizes[file]) != written:
                raise fault(path, f"{self.root}: {file} of {name} is damaged when it is read again")
        self._store.write_bytes(f"{FOLDER}/{name}/{META}", data)
        if self._store.read(f"{FOLDER}/{name}/{META}", MAX_META_BYTES + 1) != data:
            self._remove(name)
            what = f"{META} of {name} is damaged when it is read again"
            raise DamagedCopy(f"{self.root}: {what}: not copied")
        self._listed[name] = _listed(name, data, frozenset((META, *sizes)))
        for other in taken - {name}:
            self._remove(other)
        return name

    def get(self, name: str, directory: Path) -> str:
        base = name.removesuffix(NEW)
        where = f"{self.root}/{FOLDER}/{name}"
        sizes = self._folders().get(name, {})
        try:
            data = self._store.read(f"{FOLDER}/{name}/{META}", MAX_META_BYTES + 1)
            names = parse_meta(data, Path(META))["sha256"]
            if missing := sorted(set(names) - set(sizes)):
                raise CheckpointError(f"{', '.join(missing)}: missing")
            with new_checkpoint(directory, base) as part:
                for file in sorted(names):
                    with whole_file(part / file) as copy:
                        for chunk in self._store.chunks(f"{FOLDER}/{name}/{file}", sizes[file]):
                            copy.write(chunk)
                with whole_file(part / META) as copy:
                    copy.write(data)
        except CheckpointError as error:
            reason = str(error).partition(";")[0].replace(str(directory / f".{base}.part"), where)
            raise CheckpointError(f"{where}: {reason}: not copied") from None
        return base

    def get_description(self, paths: RunPaths) -> None:
        sizes = self._store.list()
        for path in (getattr(paths, name) for name in DESCRIPTION):
            if path.name in sizes and not path.exists():
                with whole_file(path) as copy:
                    for chunk in self._store.chunks(path.name, sizes[path.name]):
                        copy.write(chunk)

    def _remove(self, name: str) -> None:
        self._listed.pop(name, None)
        for file in KNOWN:
            self._store.delete(f"{FOLDER}/{name}/{file}")

    def _list(self) -> dict[str, dict[str, int]]:
        """Look what there is; returns `_folders`."""
        folders = self._folders()
        looked = [self._look(name, files) for name, files in folders.items() if META in files]
        self._listed = {one.name: one for one in looked if one is not None}
        return folders

    def _newest(self) -> list[_Listed]:
        """Complete checkpoints, the last written first; of two of one position the later alone."""
        newest: dict[str, _Listed] = {}
        for one in sorted(self._listed.values(), key=lambda one: (one.number, one.name)):
            newest[one.name.removesuffix(NEW)] = one
        return sorted(newest.values(), key=lambda one: (one.number, one.name), reverse=True)

    def _folders(self) -> dict[str, dict[str, int]]:
        """Checkpoints, complete or not: names and bytes of their files."""
        folders: dict[str, dict[str, int]] = {}
        for path, size in self._store.list().items():
            parts = path.split("/")
            if len(parts) != 3 or parts[0] != FOLDER or not NAME.fullmatch(parts[1]):
                continue
            if parts[2] in KNOWN:
                folders.setdefault(parts[1], {})[parts[2]] = size
        return folders

    def _look(self, name: str, files: dict[str, int]) -> _Listed | None:
        """What the metadata say, read unless they are known; None if they are gone."""
        known = self._listed.get(name)
        if known is not None and known.files == frozenset(files):
            return known
        try:
            data = self._store.read(f"{FOLDER}/{name}/{META}", MAX_META_BYTES + 1)
        except StoreError as error:
            if error.missing:
                return None
            raise
        return _listed(name, data, frozenset(files))

    def _remote_digest(self, name: str, size: int) -> str:
        digest = hashlib.sha256()
        for chunk in self._store.chunks(name, size):
            digest.update(chunk)
        return digest.hexdigest()


def _listed(name: str, data: bytes, files: frozenset[str]) -> _Listed:
    try:
        meta = parse_meta(data, Path(META))
    except CheckpointError:
        return _Listed(name, -1, "", {}, files)
    if not set(meta["sha256"]) <= files:
        return _Listed(name, -1, "", {}, files)
    return _Listed(
        name,
        meta.get("number", 0),
        seal(data),
        {key: meta.get(key) for key in ("top1", "loss")},
        files,
    )


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
