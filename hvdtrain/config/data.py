"""The section `data`: where the images are and how they become arrays."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hvdtrain.config.fields import Fraction, Positive, PositiveFloat, Ratio, Section


class Data(Section):
    """Where the images are and how they are turned into arrays."""

    train: str | None = None
    """Training images: a folder with one sub-folder per class, or any other kind of dataset that
    docs/how-to/data.md lists (packed, tar shards, CSV of path,label, CIFAR-10)."""
    val: str | None = None
    """Validation images with the same classes, of any kind. None: no evaluation."""
    train_size: Positive | None = None
    """Number of training images. Lets `plan` work without the dataset; checked against it."""
    augment: Literal["random_resized_crop", "pad_crop", "none"] = "random_resized_crop"
    """Training crop: a random area resized (ImageNet), reflect-pad 4 at 32 px and crop (CIFAR),
    or the whole image resized."""
    crop_aspect: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)] = [0.75, 4 / 3]
    """Smallest and largest width/height of a random resized crop."""
    flip: bool = True
    """Mirror half of the training images left to right."""
    shuffle: Literal["full", "shards"] = "full"
    """Order of training images: any order of all, or shards in random order whose images are mixed
    within `shuffle_window`, for network disks. docs/explanation/data-order.md compares them."""
    shuffle_window: Positive = 16384
    """Images within which `shuffle: shards` mixes."""
    color_jitter: Annotated[list[Fraction], Field(min_length=4, max_length=4)] = [0.0] * 4
    """Strengths of random brightness, contrast, saturation (factors in 1 ± strength) and hue
    (± strength turns of the colour circle) of training images. 0: unchanged."""
    rand_augment: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """[operations, magnitude] of RandAugment on training images: so many random operations on each
    image, of a strength from 0 to 30; [2, 9] is usual. None: off."""
    val_crop_ratio: Ratio = 0.875
    """Side of the centre crop over the resized short side in evaluation (224/256)."""
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] = [0.485, 0.456, 0.406]
    """Per-channel mean of RGB in 0–1, subtracted from every image."""
    std: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)] = [0.229, 0.224, 0.225]
    """Per-channel standard deviation of RGB in 0–1, divides every image."""
    on_bad: Literal["fail", "mask"] = "fail"
    """A training image that cannot be read or decoded ends the run, or its place is held by a
    grey image with weight 0 in loss and metrics. Evaluation always ends."""
    max_bad_ratio: Fraction = 0.01
    """Largest share of an epoch's images that `on_bad: mask` may leave out before the run ends."""
    cache: Literal["none", "ram", "device"] = "none"
    """Decode all images once, before the first step, and keep their pixels in memory that the
    ranks of a node share (`ram`), or on each device. For images of one size that are not cut to
    windows: `augment` pad_crop or none."""
    decode_threads: Positive | None = None
    """Decoding threads per rank. None: the cores of the node shared by its ranks."""
    prefetch: Annotated[int, Field(ge=1, le=16)] = 2
    """Batches decoded ahead of the training step."""

    @model_validator(mode="after")
    def _check(self) -> Data:
        operations, magnitude = self.rand_augment or (1, 0)
        if operations < 1 or not 0 <= magnitude <= 30:
            raise ValueError(
                f"rand_augment needs [operations ≥ 1, magnitude 0-30], found {self.rand_augment}"
            )
        if self.cache != "none" and self.augment == "random_resized_crop":
            raise ValueError("cache needs augment pad_crop or none, found random_resized_crop")
        return self
