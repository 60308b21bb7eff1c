"""What packing, scanning and staging report; `--json` prints the fields in this order."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.sources.left_out import LeftOut


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used."""

    name: str
    """A name by which a person finds it, usually a path."""
    reason: str


@dataclass(frozen=True)
class PackedCopy:
    """One copy of a packed dataset."""

    short_side: int | None
    """In pixels; None: the images as they were."""
    size_bytes: int
    """Size of all its shards."""
    bytes_per_image: float
    """Mean size of its images, as `hvdtrain plan` shows it; shards also have headers and labels."""


@dataclass(frozen=True)
class PackReport:
    """A packed dataset."""

    path: str
    images: int
    classes: int
    """Number of classes."""
    copies: dict[str, PackedCopy]
    """By name."""
    skipped: list[BadImage]
    """Samples that cannot be decoded."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """What is in the source and is no sample."""


@dataclass(frozen=True)
class ShortSides:
    """The short sides of all good images in pixels; 0 without any."""

    min: int
    median: int
    max: int


@dataclass(frozen=True)
class Channels:
    """Red, green and blue over all pixels in 0-1, where each image counts the same."""

    mean: list[float]
    std: list[float]
    images: int
    """That were measured."""


@dataclass(frozen=True)
class Duplicates:
    """Files with the same content."""

    names: list[str]
    classes: list[str]
    """The different classes they are in, sorted."""


@dataclass(frozen=True)
class ScanReport:
    """A dataset of which every image was decoded."""

    path: str
    manifest: str | None
    """The file written; None: the dataset has its own checksums or no labels, or see
    `manifest_fault`."""
    images: int
    size_bytes: int
    class_counts: dict[str, int]
    """Images of each class, by its name."""
    modes: dict[str, int]
    """Images of each format and mode, by PIL's names of the two."""
    short_side: ShortSides
    duplicates: list[Duplicates]
    conflicts: int
    """Groups of duplicates in more than one class."""
    bad: list[BadImage]
    left_out: LeftOut
    """What is in the dataset and is no sample."""
    channels: Channels | None
    """For `data.mean` and `data.std`; None if no image is good, or a channel hardly varies."""
    manifest_fault: str | None = None
    """Why the manifest could not be written; None: it was, or none was to be."""


@dataclass(frozen=True)
class StageReport:
    """What one call of `stage` did."""

    path: str
    copied: int
    """Files copied."""
    copied_bytes: int
    kept: int
    """Files that were there already."""
    seconds: float
    left_out: LeftOut
    """What of the source cannot be copied."""
    extra: list[str]
    """Files of the copy that the source does not have; deleted if that was asked for."""
    deleted: bool
