"""How a dataset is packed: which copies, their JPEG quality, and the size of a shard."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.sources.packed import ORIGINAL

QUALITY = 92
"""JPEG quality of the copies. Crops of 128 px from 160 px copies, compared with the same crops of the
originals: 90 gives 35.8 dB and 12.4 kB an image, 92 36.2 dB and 13.6 kB, 95 36.8 dB and 17.4 kB.
Without any JPEG loss it is 41 dB. From 92 to 95, 28 % more bytes are read for 0.6 dB."""
SHARD_IMAGES = 4096
"""Images in a shard. If packing is killed, each thread loses the work on one shard."""


@dataclass(frozen=True)
class PackOptions:
    """The settings of packing."""

    short_sides: tuple[int | None, ...] = (None,)
    """Short sides of the copies in pixels; None: the images as they are."""
    quality: int = QUALITY
    """JPEG quality of the copies, 1 to 100."""
    shard_images: int = SHARD_IMAGES
    """Images in a shard; the same ones in every copy."""
    threads: int = 1
    """Shards that are made at the same time."""
    skip_bad: bool = False
    """Finish without the images that cannot be decoded."""
    shuffle: bool = False
    """Put the images into the shards in random order instead of the order of the source."""

    @property
    def copies(self) -> dict[str, int | None]:
        """Short side of each copy, by the copy's name."""
        return {str(side or ORIGINAL): side for side in self.short_sides}


def parse_short_sides(text: str) -> tuple[int | None, ...]:
    """`160,256,orig` as (160, 256, None). Raises ValueError."""
    words = [word.strip() for word in text.split(",")]
    if odd := [word for word in words if word != ORIGINAL and not word.isdecimal()]:
        raise ValueError(f"{odd[0]}: expected pixels without a unit, or {ORIGINAL}: 160,256,orig")
    sides = [None if word == ORIGINAL else int(word) for word in words]
    if len(set(sides)) < len(sides) or any(side is not None and side < 8 for side in sides):
        raise ValueError("expected different sizes of at least 8 pixels")
    return tuple(sides)
