"""What a plan says of a dataset. Imports neither numpy nor torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset."""

    number: int
    first: list[str]
    """Names of the first few."""
    smallest: int
    """Images in the smallest class."""
    largest: int
    """The same of the largest."""

    def text(self) -> str:
        """All of it in one line."""
        # As `readable` in pipelines.sources.base, which imports numpy.
        names = ", ".join(n if n.isprintable() else repr(n)[1:-1] for n in self.first)
        more = ", …" if self.number > len(self.first) else ""
        images = f"{self.smallest:,}"
        if self.largest > self.smallest:
            images += f"–{self.largest:,}"
        return f"{self.number:,} ({names}{more}), {images} images each"

    def as_dict(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


@dataclass(frozen=True)
class Reading:
    """What one pass of a phase reads."""

    copy: str
    """Name of the copy."""
    bytes_per_image: float
    """Mean size of its images."""
    original_bytes_per_image: float | None
    """The same of the originals; None if they are not packed, or are the copy."""
    enlarged: float
    """Share of training crops that are enlarged, in 0-1."""
    median_enlargement: float
    """Factor on the side of a crop; below 1 it shrinks."""
    enlarged_from_original: float
    """As `enlarged`, if originals were read."""
    median_enlargement_from_original: float
    """As `median_enlargement`, if originals were read."""

    def as_dict(self) -> dict[str, Any]:
        """The fields, and `text`."""
        return {**asdict(self), "text": self.text()}

    def text(self) -> str:
        """All of it in one line."""
        size = f"{self.bytes_per_image / 1e3:.1f} kB an image"
        if self.original_bytes_per_image:
            size += f", {self.original_bytes_per_image / self.bytes_per_image:.1f}× less"
        return (
            f"copy {self.copy} ({size}); {self.enlarged:.0%} of crops enlarged, median "
            f"×{self.median_enlargement:.2f}; from originals {self.enlarged_from_original:.0%}, "
            f"×{self.median_enlargement_from_original:.2f}"
        )
