"""What data a run began with: written beside its results, and compared when it is resumed.

Checkpoints hold the names of the classes and a fingerprint of each dataset: a hash of names, labels
and order. `dataset.npz` has the lists themselves with the sizes of the files, so that a resumed run
can say what differs.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.checkpoint_files import list_checkpoints, read_meta
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.object_urls import is_url
from hvdtrain.config.schema import Config
from hvdtrain.errors import CheckpointError, DataError
from hvdtrain.files import whole_file
from hvdtrain.paths import RunPaths
from hvdtrain.run.recorded import read_about
from hvdtrain.telemetry.bad_list import read_list
from pipelines.inventory import file_sizes, has_files, take
from pipelines.loader import Loaders
from pipelines.sources import Source
from pipelines.sources.arrays import DamagedError, read_arrays
from pipelines.sources.inventory import UNKNOWN, Inventory, compare

THREADS = 16
"""That ask for the sizes of files when a run is resumed: a network disk answers many at once."""
_MANY = 50_000  # images whose list is written before their sizes are known, which may take minutes


@dataclass
class RunData:
    """The datasets of a run, as its checkpoints and its summary record them."""

    classes: list[str]
    fingerprints: dict[str, str]
    images: dict[str, int]
    given: dict[str, str]
    """The paths of `data.train` and `data.val`; if the former is split, that of both."""
    paths: dict[str, str]
    """The same, absolute."""
    accepted: list[str] = field(default_factory=list)
    """Changes that --accept-changes has let pass, one line each."""
    changed: bool = False
    """Whether there are such changes since the last attempt."""

    def as_dict(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        kinds = {
            kind: {"fingerprint": value, "images": self.images[kind], "path": self.paths[kind]}
            for kind, value in self.fingerprints.items()
        }
        return {"classes": self.classes, "accepted": self.accepted, **kinds}


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)  # noqa: PTH100


def recorded_data(paths: RunPaths, comm: Comm) -> dict[str, Any] | None:
    """What the newest checkpoint says of the data: None without one, {} if an old version wrote it.

    Only rank 0 needs to see the files. Every rank must call.
    """
    found: dict[str, Any] | None = None
    for path in list_checkpoints(paths.checkpoints) if comm.rank == 0 else []:
        try:
            found = read_meta(path).get("data", {})
        except CheckpointError:
            continue  # the run says so when it loads one
        break
    answer: dict[str, Any] | None = json.loads(comm.gather_text(json.dumps(found))[0])
    return answer


def classes_of(recorded: Mapping[str, Any] | None) -> list[str] | None:
    """The classes of the checkpoint, as `open_datasets` takes them."""
    return None if recorded is None else list(recorded.get("classes", []))


def check_data(
    cfg: Config,
    comm: Comm,
    loaders: Loaders,
    paths: RunPaths,
    recorded: Mapping[str, Any] | None,
    accept: bool,
) -> RunData:
    """Compare the datasets with those that the run began with.

    Raises DataError on every rank, with what differs, unless there is no difference or it is to be
    accepted. Every rank must call.
    """
    given = {"train": cfg.data.train or "", "val": cfg.data.val_path or ""}
    data = RunData(
        loaders.classes,
        loaders.fingerprints,
        {kind: len(source) for kind, source in loaders.sources.items()},
        given,
        {kind: _absolute(given[kind]) for kind in loaders.sources},
    )
    if recorded is None:
        return data
    begun = _read(paths.dataset) if comm.rank == 0 else None
    known = _recorded_fingerprints(recorded, begun)
    data.accepted = [*(begun.accepted if begun else recorded.get("accepted", []))]
    wanted = [kind for kind in loaders.sources if begun and _needs_sizes(begun, kind)]
    wanted = json.loads(comm.gather_text(json.dumps(wanted))[0])
    differ: list[str] = []
    for kind, source in loaders.sources.items():
        sizes = None
        if kind in wanted and has_files(source):
            ids = np.arange(comm.rank, len(source), comm.size)
            part = json.dumps(file_sizes(source, ids, THREADS).tolist())
            sizes = np.full(len(source), UNKNOWN, dtype=np.int64)
            for rank, text in enumerate(comm.gather_text(part)):
                sizes[rank :: comm.size] = json.loads(text)
        if comm.rank == 0 and kind in known:
            before = begun.inventories.get(kind) if begun else None
            same = known[kind] == loaders.fingerprints[kind]
            if kind == "train":
                sizes = _without_masked(sizes, before, loaders, paths)
            text = _difference(loaders, kind, given[kind], before, same, sizes)
            differ += [f"data.{kind}: {given[kind]}: {text}"] if text else []
    with together(comm):
        if differ and not accept:
            raise DataError(
                f"not the images that this run began with: {'; '.join(differ)}: put them back, or go "
                "on with these by --accept-changes"
            )
    differ = json.loads(comm.gather_text(json.dumps(differ))[0])
    data.changed = bool(differ)
    data.accepted += differ
    return data


@dataclass
class _Begun:
    """The contents of `dataset.npz`."""

    fingerprints: dict[str, str]
    accepted: list[str]
    inventories: dict[str, Inventory]


def _read(file: Path) -> _Begun | None:
    """None if there is no such file, or it is damaged: the fingerprints are left then."""
    try:
        about = read_about(file)
        kinds = list(about.fingerprints)
        arrays = read_arrays(file, *(name for kind in kinds for name in Inventory.columns(kind)))
        inventories = {kind: Inventory.of(arrays, kind) for kind in kinds}
    except (DamagedError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return _Begun(about.fingerprints, about.accepted, inventories)


def _recorded_fingerprints(recorded: Mapping[str, Any], begun: _Begun | None) -> dict[str, str]:
    """Those of the run directory, if it has them: they include what was accepted last."""
    if begun is not None:
        return begun.fingerprints
    return {kind: recorded[kind]["fingerprint"] for kind in ("train", "val") if recorded.get(kind)}


def _needs_sizes(begun: _Begun, kind: str) -> bool:
    inventory = begun.inventories.get(kind)
    return inventory is not None and bool((inventory.sizes != UNKNOWN).any())


def _difference(
    loaders: Loaders,
    kind: str,
    path: str,
    before: Inventory | None,
    same: bool,
    sizes: np.ndarray | None,
) -> str:
    """What differs; empty if nothing does. `same`: whether names, labels and order do not."""
    if before is None:
        return "" if same else "what differs is not known without dataset.npz of the run"
    if same and sizes is not None:
        known = (before.sizes != UNKNOWN) & (sizes != UNKNOWN)
        same = not (known & (before.sizes != sizes)).any()
    if same:
        return ""
    return compare(before, take(loaders.sources[kind], path, sizes)).text()


def _without_masked(
    sizes: np.ndarray | None, before: Inventory | None, loaders: Loaders, paths: RunPaths
) -> np.ndarray | None:
    """`sizes` [N] with the earlier ones of masked images: one that was repaired is no other dataset."""
    if sizes is None or before is None or len(before.sizes) != len(sizes):
        return sizes
    masked, _fault = read_list(paths.bad_samples, loaders.sources["train"])
    ids = [bad.index for bad in masked]
    sizes = sizes.copy()
    sizes[ids] = before.sizes[ids]
    return sizes


def take_sizes(file: Path, source: Source, ids: Sequence[int]) -> None:
    """Record the present sizes of training images that were repaired. Raises OSError."""
    begun = _read(file)
    if begun is None or not has_files(source) or "train" not in begun.inventories:
        return
    sizes = begun.inventories["train"].sizes
    known = np.array([i for i in ids if sizes[i] != UNKNOWN], dtype=np.int64)
    now = file_sizes(source, known)
    if (sizes[known] != now).any():
        sizes[known] = now
        about = {"fingerprints": begun.fingerprints, "accepted": begun.accepted}
        _write_inventories(file, about, begun.inventories)


def _write_inventories(
    path: Path, about: Mapping[str, Any], inventories: Mapping[str, Inventory]
) -> None:
    arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    for kind, inventory in inventories.items():
        arrays |= inventory.arrays(kind)
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


class DatasetWriter:
    """Writes `dataset.npz` in a thread of rank 0 while the run trains.

    The sizes of a million files take seconds on a local disk and minutes on a network disk. One
    thread asks for them, and sleeps while the disk looks, so that training hardly notices.
    """

    def __init__(self, file: Path, loaders: Loaders, data: RunData) -> None:
        self._file = file
        self._sources = loaders.sources
        self._data = data
        self._stop = threading.Event()
        self.fault: str | None = None
        """Why the file could not be written."""
        self._thread = threading.Thread(target=self._run, name="hvdtrain-dataset", daemon=True)

    def start(self, *, resumed: bool) -> None:
        """Write the file, unless the run is `resumed` and its file is whole and still right."""
        begun = _read(self._file) if resumed and not self._data.changed else None
        complete = begun is not None and begun.fingerprints.keys() == self._sources.keys()
        if begun is None or not complete or any(map(self._lacks_sizes, begun.inventories.items())):
            self._thread.start()

    def close(self) -> None:
        """Write what is known, and end the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)  # a disk that hangs must not hold the end of the run

    def _lacks_sizes(self, item: tuple[str, Inventory]) -> bool:
        kind, inventory = item
        return has_files(self._sources[kind]) and bool((inventory.sizes == UNKNOWN).all())

    def _run(self) -> None:
        try:
            given = self._data.given
            found = {kind: take(source, given[kind]) for kind, source in self._sources.items()}
            if sum(map(len, self._sources.values())) > _MANY:
                self._write(found)
            for kind, source in self._sources.items():
                if has_files(source):
                    ids = np.arange(len(source))
                    sizes = file_sizes(source, ids, stop=self._stop.is_set)
                    found[kind] = Inventory(**{**vars(found[kind]), "sizes": sizes})
            self._write(found)
        except OSError as error:
            self.fault = f"{self._file}: cannot be written: {error.strerror}"

    def _write(self, inventories: dict[str, Inventory]) -> None:
        about = {"fingerprints": self._data.fingerprints, "accepted": self._data.accepted}
        _write_inventories(self._file, about, inventories)
