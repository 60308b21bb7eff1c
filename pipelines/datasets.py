"""Both datasets of a run, their classes matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hvdtrain.config.data import Data
from hvdtrain.errors import DataError
from pipelines.sources import Source, open_source
from pipelines.sources.base import some
from pipelines.sources.classes import as_listed, difference, renumbered


@dataclass
class Datasets:
    """The datasets that are set; a label is the same class in both."""

    sources: dict[str, Source]
    """`train`, `val` or both, in this order."""
    classes: list[str]
    fingerprints: dict[str, str]
    """Of each source as it was listed, whatever the order of its classes is now."""
    warnings: list[str] = field(default_factory=list)
    """One line each."""


def open_datasets(data: Data, classes: Sequence[str] | None) -> Datasets:
    """Open `data.train` and `data.val`, as far as they are set.

    `classes`: those that a checkpoint has, in its order, which is kept; an empty list: it is of an
    old version without names, so the order is that of the listing; None: there is no checkpoint,
    the first dataset decides. A validation set may lack classes, which makes a warning.
    Raises DataError for any other difference, with the names.
    """
    paths = {"train": data.train, "val": data.val}
    given = {kind: path for kind, path in paths.items() if path is not None}
    if not given:
        raise DataError("data.train: not set; expected a folder with one sub-folder per class")
    sources = {
        kind: open_source(path, f"data.{kind}", columns=data.columns)
        for kind, path in given.items()
    }
    first = next(iter(sources.values()))
    own = (as_listed(first) if classes is not None else first).classes
    found = Datasets(
        sources, list(classes or own), {kind: s.fingerprint for kind, s in sources.items()}
    )
    model = "those the checkpoint was trained with" if classes else "data.train"
    for kind, path in given.items():
        differ = difference(found.classes, sources[kind].classes)
        if differ.extra or (differ.missing and kind == "train"):
            raise DataError(f"data.{kind}: {path}: classes differ from {model}: {differ.text()}")
        if differ.missing:
            found.warnings.append(
                f"data.val: {path}: has no images of {len(differ.missing)} of "
                f"{len(found.classes)} classes: {some(differ.missing)}"
            )
        sources[kind] = renumbered(sources[kind], found.classes)
    return found
