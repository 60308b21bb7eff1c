"""What a plan needs to know of the training images, from the dataset itself where it is here."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hvdtrain.config.schema import Config
from hvdtrain.errors import DataError
from pipelines.reading import Classes, Reading


def num_images(cfg: Config) -> int | None:
    """Number of images to train on: `data.train_size`, else counted, else `expected.images`.

    Raises DataError where the dataset cannot be read.
    """
    path, count = cfg.data.train, cfg.planned_images
    if cfg.data.train_size is not None or path is None:
        return count
    if count is not None and not Path(path).exists():
        return count
    from pipelines.datasets import open_training

    return len(open_training(cfg.data, cfg.seed).train)


class Dataset(NamedTuple):
    """What a plan says of the training images."""

    images: int | None
    """`num_images`."""
    reads: list[Reading]
    """What each phase reads from a packed dataset (`pipelines.copies.readings`)."""
    classes: Classes | None
    """None where the dataset was not opened."""
    held_out: int | None = None
    """Images that `data.val` holds out of the dataset; None where it is not split or not opened."""


def check_counts(cfg: Config, images: int | None, classes: int) -> None:
    """Raise DataError if a number that the config gives is not that of the dataset.

    `images`: training images; None if only evaluation images are there.
    """
    path = cfg.data.train or cfg.data.val_path
    for key, wanted, found in (
        ("data.train_size", cfg.data.train_size, images),
        ("model.num_classes", cfg.model.num_classes, classes),
    ):
        if wanted is not None and found is not None and wanted != found:
            raise DataError(
                f"{key}: the config says {wanted}, {path} has {found}: set {key}=null to count them"
            )


def look_at_dataset(cfg: Config) -> Dataset:
    """Open the training images for a plan.

    With `data.train_size` or `expected.images` the dataset need not be here. Raises DataError if it is here and differs
    from what the config says of it, or cannot be read.
    """
    path, count = cfg.data.train, cfg.planned_images
    if path is None:
        return Dataset(count, [], None)
    from pipelines.copies import readings
    from pipelines.datasets import open_training
    from pipelines.sources.classes import describe_classes

    if count is not None and not Path(path).exists():
        return Dataset(count, [], None)
    source, val = open_training(cfg.data, cfg.seed)
    check_counts(cfg, len(source), len(source.classes))
    return Dataset(
        len(source),
        readings(source, cfg.data, cfg.phases),
        describe_classes(source.classes, source.labels),
        None if val is None else len(val),
    )
