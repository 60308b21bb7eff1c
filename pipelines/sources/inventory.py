"""What a dataset held at some time, by name, and what has changed since."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.sources.base import Names, Source, readable
from pipelines.sources.classes import canonical

UNKNOWN = -1
_CHUNK = 4096  # samples whose names are taken at once
_SHOWN = 2  # names in a message


@dataclass(frozen=True)
class Inventory:
    """The samples of one dataset."""

    classes: list[str]
    labels: np.ndarray
    """[len] int32."""
    names: Names
    """Below the path of the dataset, so they stay when it moves."""
    sizes: np.ndarray
    """[len] int64: bytes; UNKNOWN where nobody has looked."""
    crc32: np.ndarray
    """[len] int64, UNKNOWN likewise."""

    def arrays(self, kind: str) -> dict[str, np.ndarray]:
        """For an `.npz` file that has several."""
        classes = Names.of([os.fsencode(name) for name in self.classes])
        return {
            f"{kind}.classes": np.frombuffer(classes.block, np.uint8),
            f"{kind}.class_ends": classes.ends,
            f"{kind}.labels": self.labels,
            f"{kind}.names": np.frombuffer(self.names.block, np.uint8),
            f"{kind}.name_ends": self.names.ends,
            f"{kind}.sizes": self.sizes,
            f"{kind}.crc32": self.crc32,
        }

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], kind: str) -> Inventory:
        """That of `arrays`. Raises KeyError."""
        columns = [arrays[f"{kind}.{name}"] for name in ("labels", "sizes", "crc32")]
        labels, sizes, crc32 = columns
        classes = Names(arrays[f"{kind}.classes"].tobytes(), arrays[f"{kind}.class_ends"])
        return cls(
            [os.fsdecode(classes[k]) for k in range(len(classes))],
            labels,
            Names(arrays[f"{kind}.names"].tobytes(), arrays[f"{kind}.name_ends"]),
            sizes,
            crc32,
        )

    @staticmethod
    def columns(kind: str) -> list[str]:
        """The names of the arrays of `arrays`."""
        columns = ("classes", "class_ends", "labels", "names", "name_ends", "sizes", "crc32")
        return [f"{kind}.{column}" for column in columns]


def names_below(source: Source, path: str) -> Names:
    """Names of all samples, without the path of the dataset before them."""
    begins = [path.rstrip("/"), str(Path(path)), os.path.dirname(path), str(Path(path).parent)]  # noqa: PTH120
    prefixes = [os.fsencode(begin + sign) for begin in begins if begin for sign in "/:"]
    blocks, lengths = [], []
    for first in range(0, len(source), _CHUNK):
        chunk = []
        for i in range(first, min(first + _CHUNK, len(source))):
            name = os.fsencode(source.name(i))
            prefix = next((p for p in prefixes if name.startswith(p)), b"")
            chunk.append(name[len(prefix) :])
        blocks.append(b"".join(chunk))
        lengths += list(map(len, chunk))
    return Names(b"".join(blocks), np.cumsum(np.array(lengths, dtype=np.int64)))


class Change(NamedTuple):
    """What differs between two inventories of one dataset; each a few names and their number."""

    added: list[str]
    gone: list[str]
    changed: list[str]
    """Of another size, class or checksum."""
    moved: bool = False
    """Whether only the order differs."""

    def text(self) -> str:
        """Such as "3 added (bee/7.jpg, …), 10 gone (ant/0.jpg, …)"; empty without a difference."""
        if self.moved:
            return "the same images in another order"
        parts = [(word, getattr(self, word)) for word in ("added", "gone", "changed")]
        return ", ".join(f"{len(names):,} {word} ({_few(names)})" for word, names in parts if names)


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(readable, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")


def compare(before: Inventory, now: Inventory) -> Change:
    """What has changed. Names are compared in one Unicode form, sizes where both are known."""
    old, new = list(_keys(before)), list(_keys(now))
    gone, added = Counter(old) - Counter(new), Counter(new) - Counter(old)
    place = {name: i for i, name in enumerate(old)}
    pairs = [(place[name], i) for i, name in enumerate(new) if name in place]
    theirs, ours = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    differ = np.zeros(len(pairs), dtype=bool)
    for a, b in ((before.sizes, now.sizes), (before.crc32, now.crc32)):
        known = (a[theirs] != UNKNOWN) & (b[ours] != UNKNOWN)
        differ |= known & (a[theirs] != b[ours])
    differ |= _class_numbers(before, now)[before.labels[theirs]] != now.labels[ours]
    changed = sorted({new[i] for i in ours[differ].tolist()} - added.keys())
    found = Change(sorted(added.elements()), sorted(gone.elements()), changed)
    return found._replace(moved=not any(found[:3]) and old != new)


def _keys(inventory: Inventory) -> Iterator[str]:
    for i in range(len(inventory.names)):
        yield canonical(os.fsdecode(inventory.names[i]))


def _class_numbers(before: Inventory, now: Inventory) -> np.ndarray:
    """The number now of each class of `before`; UNKNOWN for those that are gone."""
    number = {canonical(name): k for k, name in enumerate(now.classes)}
    numbers = [number.get(canonical(name), UNKNOWN) for name in before.classes]
    return np.array(numbers or [UNKNOWN], dtype=np.int64)
