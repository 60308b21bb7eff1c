"""The section `checkpoint`: when the state of a run is written, and which copies are kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from hvdtrain.config.fields import Machine, PathText, Positive, PositiveFloat, Ratio, Section
from hvdtrain.config.object_urls import check_url, is_url

FolderOrStore = Annotated[
    PathText, AfterValidator(lambda text: check_url(text) if is_url(text) else text)
]
"""The path of a folder, or the URL of an object store."""


class Checkpoint(Section):
    """When checkpoints are written, and how many are kept."""

    every_epochs: Machine[Positive] = 1
    """Epochs between two checkpoints."""
    every_steps: Machine[Positive | None] = None
    """Also a checkpoint after every so many updates, in mid-epoch as well. null: none."""
    every_minutes: Machine[PositiveFloat | None] = 10.0
    """Longest time between two checkpoints, in mid-epoch as well. null: time does not count."""
    overhead: Machine[Ratio] = 0.01
    """Share of the time that checkpoints may cost: as long as they cost less, they are written more
    often than `every_minutes` says, up to once a minute."""
    keep: Machine[Positive] = 2
    """Number of checkpoints to keep, and of those at the end of an epoch; older ones are deleted."""
    keep_best: Machine[Annotated[int, Field(ge=0, le=10**9)]] = 0
    """Also keep so many of the highest top-1 accuracy, of those written after an evaluation."""
    keep_every: Machine[Annotated[int, Field(ge=0, le=10**9)]] = 0
    """Also keep, for good, those at the end of every so many epochs. 0: none."""
    keep_start: Machine[bool] = False
    """Also write one before the first update, and keep it for good: how far weights are from their start
    is measured from it."""
    mirror: Machine[FolderOrStore | None] = None
    """Folder on another disk, or URL of an object store such as s3://BUCKET/PREFIX, for a second copy of
    the checkpoints that are kept. null: none."""
