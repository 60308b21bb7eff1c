"""The section `data`: where the images are and how they are turned into arrays."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from hvdtrain.config.fields import (
    CropAspect,
    Fraction,
    Identity,
    InsideUnit,
    Machine,
    PathText,
    Planned,
    Positive,
    Section,
    Threads,
)
from hvdtrain.config.object_urls import check_data_url, is_url


class Columns(Section):
    """Which columns of a list of images hold what, by the names in its first line."""

    path: Machine[Annotated[str, Field(min_length=1)] | None] = None
    """Column of the image files. null: recognised by its name (`path`, `file_name`, `image_id`, …)."""
    label: Machine[Annotated[str, Field(min_length=1)] | None] = None
    """Column of the class names. null: recognised by its name (`label`, `class`, `category`, …)."""


class RemoteCache(Section):
    """Where each node keeps what it has fetched of datasets on a web server or in an object store."""

    folder: Machine[PathText | None] = None
    """Folder on a disk of the node, which its ranks share. null: hvdtrain-cache-UID in $TMPDIR, or else in
    /var/tmp."""
    size_gb: Machine[Annotated[float, Field(ge=0.01, le=1e9)]] = 100.0
    """Most gigabytes (10^9 bytes) in the folder; what was fetched the longest ago is deleted first. Best is
    enough for `train` and `val` together."""


def _path_or_url(text: str) -> str:
    return check_data_url(text) if is_url(text) else text


DataPath = Annotated[PathText, AfterValidator(_path_or_url)]
"""The path of a dataset, or the URL of one on a server."""


class Data(Section):
    """Where the images are and how they are turned into arrays."""

    train: Machine[DataPath | None] = None
    """Training images: a folder with one sub-folder per class, or another kind of dataset from
    docs/how-to/data.md (packed, tar shards, CSV of path,label, CIFAR-10). Tar shards and packed datasets
    may be URLs: http://, https://, s3:// or gs://."""
    val: Planned[InsideUnit | DataPath | None] = None
    """Validation images, any kind of dataset; classes are matched by name, and some may lack. A number
    such as 0.2: this share of each class of `train` is held out, chosen by the names of the images
    and `seed`; a folder of such a name is ./0.2. null: no evaluation."""
    train_size: Machine[Positive | None] = None
    """Number of images to train on, without those that `val` holds out. With it `plan` works without
    the dataset; a run checks it against the dataset."""
    remote_cache: RemoteCache = RemoteCache()
    """For datasets that are URLs."""
    columns: Columns = Columns()
    """For lists (.csv, .tsv, .txt) of `train` and `val` whose columns have names of their own."""
    augment: Identity[Literal["random_resized_crop", "pad_crop", "none"]] = "random_resized_crop"
    """Training crop. `random_resized_crop`: a random area, resized (ImageNet). `pad_crop`: pad, then
    crop (CIFAR). `none`: the whole image, resized."""
    crop_padding: Identity[Annotated[int, Field(ge=1, le=4096)] | None] = None
    """Pixels by which `pad_crop` pads each side. null: an eighth of the image size, 4 for 32 px."""
    padding_mode: Identity[Literal["reflect", "zero"]] = "reflect"
    """What `pad_crop` pads with: the image, reflected at its border, or black."""
    crop_aspect: Identity[CropAspect] = [0.75, 4 / 3]
    """Smallest and largest width/height of a random resized crop."""
    flip: Identity[Literal["alternating"] | bool] = True
    """Mirror training images left to right. `true`: each with probability 1/2. `alternating`: half of
    the images in the first epoch, and each image in every other epoch from then on."""
    shuffle: Identity[Literal["full", "shards"]] = "full"
    """Order of training images. `full`: all images in random order. `shards`: shards in random
    order, images mixed within `shuffle_window`; faster on network disks. docs/explanation/data-order.md compares
    them."""
    shuffle_window: Identity[Positive] = 16384
    """Number of images within which `shuffle: shards` mixes."""
    repeats: Identity[Annotated[int, Field(ge=1, le=64)]] = 1
    """Repeated augmentation: each image is used so many times in a row, changed in other ways each
    time. An epoch keeps its length, and as many epochs together use every image that often."""
    color_jitter: Identity[Annotated[list[Fraction], Field(min_length=4, max_length=4)]] = [0.0] * 4
    """Strengths of random changes of brightness, contrast, saturation (a factor in 1 ± strength) and
    hue (± strength turns of the colour circle) in training images. 0: no change."""
    rand_augment: Identity[Annotated[list[int], Field(min_length=2, max_length=2)] | None] = None
    """RandAugment on training images: [number of random operations on each image, magnitude from 0
    to 30]; [2, 9] is usual. null: off."""
    rand_augment_policy: Identity[Literal["standard", "nfnet"]] = "standard"
    """Operations of RandAugment and what their magnitudes mean. `standard`: torchvision's. `nfnet`:
    DeepMind's for NFNets, magnitude 0 to 20; [4, 5] for F0 is its "405"."""
    rotation: Identity[Annotated[float, Field(ge=0, le=180)]] = 0.0
    """Training images are turned by a random angle within ± this many degrees. 0: off."""
    translation: Identity[Fraction] = 0.0
    """Training images are moved up or down, and left or right, by a random number of pixels within
    ± this share of their side. 0: off."""
    random_erasing: Identity[Fraction] = 0.0
    """Probability that a box of 2 to 33 % of a training image is filled with the mean colour. 0: off."""
    val_crop_ratio: Identity[Annotated[float, Field(ge=0.1, le=1)]] = 0.875
    """Evaluation: side of the centre crop divided by the short side of the resized image
    (224/256)."""
    val_resize: Identity[Literal["crop", "stretch"]] = "crop"
    """Evaluation: `crop` keeps the aspect of the image when it is resized, and crops what is too long.
    `stretch` resizes the whole image to a square first, as DeepMind evaluates NFNets."""
    mean: Identity[Annotated[list[float], Field(min_length=3, max_length=3)]] = [
        0.485,
        0.456,
        0.406,
    ]
    """Mean of each RGB channel (0–1), subtracted from every image."""
    std: Identity[
        Annotated[list[Annotated[float, Field(ge=0.001)]], Field(min_length=3, max_length=3)]
    ] = [
        0.229,
        0.224,
        0.225,
    ]
    """Standard deviation of each RGB channel (0–1); every image is divided by it."""
    on_bad: Planned[Literal["fail", "mask"]] = "fail"
    """What happens if a training image cannot be read or decoded. `fail`: the run ends. `mask`: a
    grey image with weight 0 in loss and metrics replaces it. A bad evaluation image always ends
    the run."""
    max_bad_ratio: Planned[Fraction] = 0.01
    """The run ends if `on_bad: mask` masks more than this share of an epoch's images."""
    cache: Machine[Literal["none", "ram", "device"]] = "none"
    """Decode all images once before the first step, and keep the pixels: `ram` in memory that the
    ranks of a host share, `device` on each GPU. Needs images of one size, and `augment: pad_crop` or
    `none`."""
    decode_threads: Machine[Threads | None] = None
    """Decoding threads per rank. null: the cores of the host, divided among its ranks."""
    prefetch: Machine[Annotated[int, Field(ge=1, le=16)]] = 2
    """Number of batches that are decoded ahead of the training step."""

    @property
    def val_share(self) -> float | None:
        """The share of `train` that is held out; None if it is not split."""
        return None if isinstance(self.val, str) else self.val

    @property
    def val_path(self) -> str | None:
        """The dataset that the validation images are in, if any: that of `train` if it is split."""
        return self.train if isinstance(self.val, float) else self.val

    @model_validator(mode="after")
    def _check(self) -> Data:
        self._check_crop()
        self._check_rand_augment()
        if self.repeats > 1 and self.on_bad == "mask":
            raise ValueError(
                f"repeats: {self.repeats} needs on_bad: fail, found mask: which copies of a damaged "
                "image can be used would not be the same after a resume"
            )
        for key in ("mean", "std"):
            if (largest := max(getattr(self, key))) > 1:
                raise ValueError(
                    f"{key}: {largest:g} is above 1; means and deviations are of RGB in 0-1: "
                    "divide them by 255"
                )
        if min(self.mean) < 0:
            raise ValueError(f"mean: {min(self.mean):g} is below 0; means are of RGB in 0-1")
        if self.cache != "none" and self.augment == "random_resized_crop":
            raise ValueError("cache needs augment: pad_crop or none, found random_resized_crop")
        return self

    def _check_crop(self) -> None:
        padding = {
            "crop_padding": (self.crop_padding, None),
            "padding_mode": (self.padding_mode, "reflect"),
        }
        for key, (value, usual) in padding.items():
            if value != usual and self.augment != "pad_crop":
                raise ValueError(f"{key}: {value} needs augment: pad_crop, found {self.augment}")

    def _check_rand_augment(self) -> None:
        policy = self.rand_augment_policy
        if self.rand_augment is None and policy != "standard":
            raise ValueError(
                f"rand_augment_policy: {policy} needs rand_augment, for example [4, 5]"
            )
        operations, magnitude = self.rand_augment or (1, 0)
        strongest = 20 if policy == "nfnet" else 30
        if not 1 <= operations <= 16 or not 0 <= magnitude <= strongest:
            of_policy = "" if policy == "standard" else f" for policy {policy}"
            raise ValueError(
                f"rand_augment: expected [operations 1-16, magnitude 0-{strongest}]{of_policy}, found "
                f"{self.rand_augment}"
            )
