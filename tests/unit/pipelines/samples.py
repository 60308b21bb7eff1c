"""Data of the pipeline tests: small pictures, and epochs as a plan describes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")
PER_CLASS = 7
COUNT = len(CLASSES) * PER_CLASS


@dataclass(frozen=True)
class Epoch:
    """What the loaders need to know about an epoch; `steps` as a plan counts them."""

    num_train: int = COUNT
    world_size: int = 1
    index: int = 0
    image_size: int = 24
    val_image_size: int = 24
    rect_val: bool = False
    min_crop_area: float = 0.08
    crop_aspect: list[float] | None = None
    interpolation: str = "bilinear"
    batch_per_worker: int = 4
    accumulate: int = 1
    start: int = 0

    @property
    def steps(self) -> int:
        batch = self.world_size * self.batch_per_worker * self.accumulate
        return -(-(self.num_train - self.start) // batch)


def photograph(seed: int, height: int, width: int) -> Image.Image:
    """A smooth colourful picture: its pixels survive JPEG and resizing well."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def tree(root: Path, *files: str) -> Path:
    """Files below `root`, each with its own name as content."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode())
    return root
