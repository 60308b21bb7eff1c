"""What packing, scanning and staging report; `--json` prints the fields in this order."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True)
class ShortSides:
    """The short sides of all good images in pixels; 0 without any."""

    min: int
    median: int
    max: int


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
    """The file written; None: the dataset has its own checksums."""
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
    left_out: dict[str, int]
    """How many files or members are no sample, by the reason."""
    left_out_text: str
    """The same in one line, with the name of the first; empty if there are none."""


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
