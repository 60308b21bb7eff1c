"""What a plan needs to know of the training images, from the dataset itself where it is here."""

from __future__ import annotations

from hvdtrain.config.schema import Config
from pipelines.reading import Reading


def num_images(cfg: Config) -> int | None:
    """Number of training images: `data.train_size`, else counted; None without a dataset.

    Raises DataError where the dataset cannot be read.
    """
    if cfg.data.train_size is not None or cfg.data.train is None:
        return cfg.data.train_size
    from pipelines.sources import open_source

    return len(open_source(cfg.data.train, "data.train", columns=cfg.data.columns))


def images_and_readings(cfg: Config) -> tuple[int | None, list[Reading]]:
    """`num_images`, and what each phase reads from a packed dataset (`pipelines.copies.readings`).

    With `data.train_size` only a packed dataset is opened: its index is quick to read.
    """
    path, count = cfg.data.train, cfg.data.train_size
    if path is None:
        return count, []
    from pipelines.copies import readings
    from pipelines.sources import open_source
    from pipelines.sources.packed import is_packed

    if count is not None and not is_packed(path):
        return count, []
    source = open_source(path, "data.train", columns=cfg.data.columns)
    return len(source) if count is None else count, readings(source, cfg.data, cfg.phases)
