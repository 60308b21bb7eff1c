"""What a plan needs to know of the training images, from the dataset itself where it is here."""

from __future__ import annotations

from pathlib import Path

from hvdtrain.config.schema import Config
from hvdtrain.errors import DataError
from pipelines.reading import Reading


def num_images(cfg: Config) -> int | None:
    """Number of training images: `data.train_size`, else counted; None without a dataset.

    Raises DataError where the dataset cannot be read.
    """
    if cfg.data.train_size is not None or cfg.data.train is None:
        return cfg.data.train_size
    from pipelines.sources import open_source

    return len(open_source(cfg.data.train, "data.train"))


def check_counts(cfg: Config, images: int, classes: int) -> None:
    """Raise DataError if a number that the config gives is not that of `data.train`."""
    for key, wanted, found in (
        ("data.train_size", cfg.data.train_size, images),
        ("model.num_classes", cfg.model.num_classes, classes),
    ):
        if wanted is not None and wanted != found:
            raise DataError(
                f"{key}: the config says {wanted}, {cfg.data.train} has {found}: set {key}=null to "
                "count them"
            )


def images_and_readings(cfg: Config) -> tuple[int | None, list[Reading]]:
    """`num_images`, and what each phase reads from a packed dataset (`pipelines.copies.readings`).

    With `data.train_size` the dataset need not be here. Raises DataError if it is here and differs
    from what the config says of it.
    """
    path, count = cfg.data.train, cfg.data.train_size
    if path is None:
        return count, []
    from pipelines.copies import readings
    from pipelines.sources import open_source

    if count is not None and not Path(path).exists():
        return count, []
    source = open_source(path, "data.train")
    check_counts(cfg, len(source), len(source.classes))
    return len(source) if count is None else count, readings(source, cfg.data, cfg.phases)
