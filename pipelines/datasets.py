"""Both datasets of a run, their classes matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hvdtrain.config.data import Data
from hvdtrain.errors import DataError
from pipelines.sources import Source, open_source
from pipelines.sources.base import readable, some
from pipelines.sources.classes import as_listed, difference, renumbered
from pipelines.sources.split import Split, split


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


def open_datasets(
    data: Data, classes: Sequence[str] | None, *, seed: int, training: bool = True
) -> Datasets:
    """Open `data.train` and `data.val`, as far as they are set; without `training` only the latter.

    `classes`: those of the checkpoint that a run goes on from, in its order, which is kept; an empty list: it is of an
    old version without names, so the order is that of the listing; None: there is no checkpoint,
    the first dataset decides. A validation set may lack classes, which makes a warning.
    `seed`: of the split if `data.val` is a share of `data.train`.
    Raises DataError for any other difference, with the names.
    """
    sources = _open(data, seed, training=training)
    first = next(iter(sources.values()))
    own = (as_listed(first) if classes is not None else first).classes
    found = Datasets(
        sources, list(classes or own), {kind: s.fingerprint for kind, s in sources.items()}
    )
    paths = {"train": data.train, "val": data.val_path}
    model = "those the checkpoint was trained with" if classes else "data.train"
    for kind, source in sources.items():
        path = paths[kind]
        differ = difference(found.classes, source.classes)
        if differ.extra or (differ.missing and kind == "train"):
            raise DataError(f"data.{kind}: {path}: classes differ from {model}: {differ.text()}")
        if differ.missing:
            found.warnings.append(
                f"data.val: {path}: has no images of {len(differ.missing)} of "
                f"{len(found.classes)} classes: {some(differ.missing)}"
            )
        sources[kind] = renumbered(source, found.classes)
    if len(found.classes) == 1 and "train" in sources:
        found.warnings.append(
            f"data.train: {data.train}: has one class only, {readable(found.classes[0])}: there is "
            "nothing to tell it from; are the folders of classes elsewhere?"
        )
    if data.val_share is not None:
        found.warnings += _not_held_out(sources["val"])
    return found


def _open(data: Data, seed: int, *, training: bool) -> dict[str, Source]:
    if data.val_share is not None:
        if data.train is None:
            raise DataError(
                f"data.val: {data.val_share:g} is a share of data.train, which is not set"
            )
        whole = open_training(data, seed)
        parts = {"train": whole.train, "val": whole.val}
    else:
        paths = {"train": data.train if training else None, "val": data.val_path}
        parts = {
            kind: open_source(
                path,
                f"data.{kind}",
                columns=data.columns,
                remote=data.remote_cache,
                scattered=kind == "train" and data.shuffle == "full",
            )
            for kind, path in paths.items()
            if path is not None
        }
    sources = {
        kind: s for kind, s in parts.items() if s is not None and (training or kind == "val")
    }
    if not sources:
        raise DataError("data.train: not set; expected a folder with one sub-folder per class")
    return sources


def open_training(data: Data, seed: int) -> Split:
    """The dataset `data.train`, and the part of it that `data.val` holds out, if any.

    Raises DataError where it cannot be read or split.
    """
    assert data.train is not None
    source = open_source(
        data.train,
        "data.train",
        columns=data.columns,
        remote=data.remote_cache,
        scattered=data.shuffle == "full",
    )
    if data.val_share is None:
        return Split(source, None)
    return split(source, data.val_share, path=data.train, seed=seed)


def _not_held_out(val: Source) -> list[str]:
    """One line if the split leaves classes without validation images."""
    none = np.flatnonzero(np.bincount(val.labels, minlength=len(val.classes)) == 0)
    if not len(none):
        return []
    names = some([val.classes[k] for k in none.tolist()])
    return [
        f"data.val: {len(none)} of {len(val.classes)} classes have too few images to hold one out: "
        f"{names}"
    ]
