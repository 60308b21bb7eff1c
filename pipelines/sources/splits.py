"""Tells a dataset's root, with its parts train and val, from a folder of classes."""

# File names are bytes: any name on a disk is possible.
# ruff: noqa: PTH122

from __future__ import annotations

import os
from pathlib import Path

from hvdtrain.errors import DataError
from pipelines.sources.base import EXTENSIONS

_TRAIN = ("train", "training", "trainset", "train_set")
_VAL = ("val", "valid", "validation", "valset", "val_set", "dev", "eval")
_TEST = ("test", "testing", "testset", "test_set")
_SPLITS = frozenset(_TRAIN + _VAL + _TEST)


def refuse_splits(path: str, key: str) -> None:
    """Raise DataError, naming the likely folder, if the sub-folders of `path` are no classes.

    They are not if all are called like parts of a dataset, and images lie in folders in one of
    them. Does nothing where `path` cannot be listed: the source that lists it reports that.
    """
    try:
        with os.scandir(path) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return
    if not names or not all(name.lower() in _SPLITS for name in names):
        return
    deep = [name for name in names if _has_folder_of_images(Path(path, name))]
    if not deep:
        return
    wanted = _VAL + _TEST if key == "data.val" else _TRAIN
    likely = min(deep, key=lambda name: (*wanted, name.lower()).index(name.lower()))
    place = Path(path, likely)
    raise DataError(
        f"{key}: {path}: its folders {', '.join(names)} are parts of a dataset, not classes: "
        f"{'' if key == 'PATH' else f'{key}='}{place}?"
    )


def _has_folder_of_images(folder: Path) -> bool:
    """Whether some sub-folder of `folder` has an image in it or below it."""
    for place, _folders, files in os.walk(os.fsencode(folder)):
        if place != os.fsencode(folder) and any(
            os.path.splitext(name)[1].lower() in EXTENSIONS for name in files
        ):
            return True
    return False
