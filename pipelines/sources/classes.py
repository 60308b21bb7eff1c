"""Classes are names: the datasets of a run are matched by name, never by position or number."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from hvdtrain.errors import DataError
from pipelines.reading import Classes
from pipelines.sources.base import Source, some
from pipelines.sources.left_out import left_out_of

_FIRST = 5  # names in a description of the classes


def canonical(name: str) -> str:
    """`name` in the form in which names are compared: file systems write é in one or two parts."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def natural_order(names: Sequence[str]) -> list[str]:
    """Names that are all numbers in the order of their values (2 before 10); others as they are."""
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return list(names)


class Difference(NamedTuple):
    """Class names that only one of two datasets has."""

    missing: list[str]
    extra: list[str]

    def text(self) -> str:
        """Such as "missing ant; extra bee, cat"; empty without a difference."""
        parts = [f"{word} {some(names)}" for word, names in self._asdict().items() if names]
        return "; ".join(parts)


def difference(expected: Sequence[str], found: Sequence[str]) -> Difference:
    """What `found` lacks of the `expected` classes and what it has beside them, sorted."""
    wanted, has = _keys(expected), _keys(found)
    return Difference(
        sorted(expected[k] for key, k in wanted.items() if key not in has),
        sorted(found[k] for key, k in has.items() if key not in wanted),
    )


def _keys(names: Sequence[str]) -> dict[tuple[str, int], int]:
    """What each class is known by, and its number. A name may stand for several classes (ImageNet
    has two cranes): then the first is the first in every dataset."""
    seen: Counter[str] = Counter()
    keys = {}
    for number, name in enumerate(map(canonical, names)):
        keys[name, seen[name]] = number
        seen[name] += 1
    return keys


def matched_rows(theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """For each of our classes its number among theirs; empty if they are not the same classes."""
    number = _keys(theirs)
    if number.keys() != _keys(ours).keys():
        return []
    return [number[key] for key in _keys(ours)]


class Relabelled:
    """A source whose classes are numbered otherwise; its samples and their order stay."""

    def __init__(self, source: Source, classes: Sequence[str]) -> None:
        """`classes`: all of the source's, in any order, and perhaps more."""
        number = _keys(classes)
        numbers = np.array([number[key] for key in _keys(source.classes)], dtype=np.int32)
        self.source = source
        self.classes = list(classes)
        self.labels = numbers[source.labels]
        names = "\0".join([source.fingerprint, *classes])
        self.fingerprint = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        self.shard_starts: np.ndarray | None = getattr(source, "shard_starts", None)
        self.left_out = left_out_of(source)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The name that the source gives it."""
        return self.source.name(i)

    def read(self, i: int) -> np.ndarray:
        """The encoded bytes of sample `i`, [bytes] uint8. Raises DataError naming it."""
        return self.source.read(i)

    def over(self, source: Source) -> Relabelled:
        """The same for another copy of the source."""
        return Relabelled(source, self.classes)


def as_listed(source: Source) -> Source:
    """`source` with the classes in the order in which it was listed, as old versions had them."""
    return source.source if isinstance(source, Relabelled) else source


def renumbered(source: Source, classes: Sequence[str]) -> Source:
    """`source` with its classes numbered as in `classes`, which has all of them."""
    for same in (source, as_listed(source)):
        if same.classes == list(classes):
            return same
    return Relabelled(as_listed(source), classes)


def require_distinct(classes: Sequence[str], where: str) -> None:
    """Raise DataError if two names are the same for a reader."""
    are_numbers = all(name.isascii() and name.isdigit() for name in classes)
    for what, form in _SAME:
        if form is int and not are_numbers:
            continue
        forms: dict[str | int, set[str]] = {}
        for name in classes:
            forms.setdefault(form(name), set()).add(name)
        if several := sorted(name for same in forms.values() if len(same) > 1 for name in same):
            quote = slice(None) if form is str.strip else slice(1, -1)
            raise DataError(
                f"{where}: classes whose names differ in {what} only: "
                f"{some([ascii(name)[quote] for name in several])}; rename or merge them"
            )


_SAME: tuple[tuple[str, Callable[[str], str | int]], ...] = (
    ("their Unicode form", canonical),
    ("blanks around them", str.strip),
    ("leading zeros", int),
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def require_no_fractions(labels: Collection[str], where: str) -> None:
    """Raise DataError if all `labels` are numbers and some are not whole, or not written so."""
    broken = [label for label in labels if not label.lstrip("+-").isdigit()]
    if broken and all(_NUMBER.fullmatch(label) for label in labels):
        raise DataError(
            f"{where}: labels are numbers with a fraction ({min(broken)}); expected names or whole "
            "numbers of classes: write 1 for 1.0"
        )


def describe_classes(classes: Sequence[str], labels: np.ndarray) -> Classes:
    """Number, first names and images per class; `labels` [len] are those of all images."""
    images = np.bincount(labels, minlength=len(classes))
    return Classes(len(classes), list(classes[:_FIRST]), int(images.min()), int(images.max()))
