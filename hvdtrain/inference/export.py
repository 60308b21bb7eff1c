"""Writes a network for other programs, and compares what they compute before the file gets its name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from hvdtrain.errors import DataError, HvdtrainError, ResourceError
from hvdtrain.files import PartFile
from hvdtrain.inference import export_formats
from hvdtrain.inference.export_formats import Network
from hvdtrain.inference.given_images import of_source
from hvdtrain.inference.opened import OpenedModel
from hvdtrain.models.weights_out import Library
from pipelines.fixed import Preparation
from pipelines.given import GivenImages
from pipelines.sources import open_source

Format = Literal["safetensors", "pt2", "onnx"]
TOLERANCE = 1e-4
"""Largest difference of a logit, for logits up to 1; of larger ones this share of the largest."""
IMAGES = 8
"""Validation images on which logits are compared."""


@dataclass(frozen=True)
class Exported:
    """A file that was written and gives the same logits."""

    path: Path
    size_bytes: int
    difference: float
    """Largest difference of a logit, over all inputs that were compared."""
    compared: list[list[int]]
    """Shapes [N, 3, H, W] of these inputs."""
    images: int
    """Of them, images of the run's validation set."""
    notes: list[str]


def export(
    opened: OpenedModel, form: Format, output: Path, names: Library | None = None
) -> Exported:
    """Write the network, which must be on the CPU, as `form` to `output`.

    It takes prepared images [N, 3, H, W] float32 and gives logits [N, classes]. `names`: with the
    names of that library (safetensors only). The file is read again, by torch, ONNX Runtime or that
    library, before it gets its name, and must give the same logits on random inputs and, where the run's
    validation images are at hand, on some of them. Raises ConfigError if the network cannot be written so,
    HvdtrainError where logits differ, ResourceError.
    """
    images = _validation_images(opened)
    try:
        return _export(opened, form, output, names, images, free_size=True)
    except HvdtrainError as error:
        if form == "safetensors" or type(error) is not HvdtrainError:
            raise
    # Where the image size is free, adaptive pooling may become wrong ONNX, and a program may refuse images so
    # small that one position is left.
    return _export(opened, form, output, names, images, free_size=False)


def _export(
    opened: OpenedModel,
    form: Format,
    output: Path,
    names: Library | None,
    images: torch.Tensor,
    *,
    free_size: bool,
) -> Exported:
    network = opened.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    size, notes = opened.about.preprocessing.image_size, []
    if opened.about.views != "one":
        notes.append(
            f"the run evaluates with the mean over views ({opened.about.views}); the file computes one view"
        )
    made = export_formats.make(opened, network, form, size, names, free_size=free_size)
    inputs = [*_random_inputs(size, made.free_size), *([images] if len(images) else [])]
    with _part(output) as part:
        part.file.write(made.content)
        part.file.flush()
        read = made.read(part.part)
        difference = max(_difference(network, read, one) for one in inputs)
        size_bytes = part.part.stat().st_size
    shapes = [list(one.shape) for one in inputs]
    return Exported(output, size_bytes, difference, shapes, len(images), [*notes, *made.notes])


@contextlib.contextmanager
def _part(output: Path) -> Iterator[PartFile]:
    """A file that gets its name at the end, if nothing was raised. Raises ResourceError."""
    try:
        part = PartFile(output)
        try:
            yield part
        except BaseException:
            part.discard()
            raise
        part.keep()
    except OSError as error:
        raise ResourceError(f"{output}: cannot be written: {error.strerror or error}") from None


def _random_inputs(size: int, free_size: bool) -> list[torch.Tensor]:
    """Inputs of several batch sizes, and of other sizes and shapes if the file takes them."""
    random = torch.Generator().manual_seed(0)
    shapes = [(1, size, size), (3, size, size)]
    if free_size:
        shapes += [(2, size + 32, size), (1, size, size + 64)]
    return [torch.randn((n, 3, h, w), generator=random) for n, h, w in shapes]


@torch.no_grad()
def _difference(network: nn.Module, read: Network, images: torch.Tensor) -> float:
    expected = network(images).float()
    found = read(images).float()
    if found.shape != expected.shape:
        raise HvdtrainError(
            f"the file gives logits {list(found.shape)}, the network {list(expected.shape)}: not written"
        )
    difference = float((found - expected).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise HvdtrainError(
            f"the file's logits differ by {difference:.2g} from the network's on inputs "
            f"{list(images.shape)}, more than {allowed:.2g}: not written"
        )
    return difference


def _validation_images(opened: OpenedModel) -> torch.Tensor:
    """A few, prepared: [N, 3, S, S]; none if they are not at hand."""
    how = opened.about.preprocessing
    none = torch.empty((0, 3, how.image_size, how.image_size))
    if opened.images is None:
        return none
    try:
        given = of_source(open_source(opened.images, "data.val", check=False))
        threads = len(os.sched_getaffinity(0))
        wanted = Preparation(how.image_size, how.interpolation, torch.device("cpu"), threads)
        with GivenImages(how.data(), wanted) as prepared:
            found = next(prepared.batches(islice(given, IMAGES), IMAGES), None)
    except DataError:
        return none
    return none if found is None else found.images
