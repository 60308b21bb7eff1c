"""A trained network that names what is in images."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from hvdtrain.engine.step import autocast_type
from hvdtrain.engine.views import mean_logits
from hvdtrain.inference.given_images import given
from hvdtrain.inference.opened import OpenedModel, find_device, open_model
from pipelines.fixed import Preparation
from pipelines.given import Fault, Given, GivenImages

BATCH = 32
"""Images of one forward pass, if nothing else is asked for."""

NOT_FINITE = Fault("network", "what the network computes of it is not finite")

AnyImage = str | os.PathLike[str] | Image.Image | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, or why there are none."""

    name: str
    """Path of the image, or its number for one that is no file."""
    classes: list[str]
    """The best first; empty for an image that cannot be used."""
    probabilities: list[float]
    """Of these classes, 0-1; over all classes they sum to 1."""
    labels: list[int]
    """Numbers of these classes."""
    fault: Fault | None = None
    """Why the image cannot be used; None if it could."""


class Classifier:
    """A trained network with its classes and its preprocessing: `load` makes one.

    It computes as `hvdtrain eval` does: with the averaged weights if the run keeps them, in the run's
    precision, over the run's views of each image, of the size that its evaluations had.
    """

    classes: list[str]
    """Names of the classes in the order of their numbers."""
    network: nn.Module
    """[N, 3, H, W] float32, prepared images → [N, classes] logits."""
    device: torch.device

    def __init__(self, opened: OpenedModel, device: torch.device) -> None:
        self.about, self.source, self.warnings = opened.about, opened.source, opened.warnings
        self.network, self.device = opened.network, device
        self.classes = self.about.classes or [str(k) for k in range(self.about.num_classes)]

    def predict(
        self, images: AnyImage | Iterable[AnyImage], top: int = 5, batch: int = BATCH
    ) -> list[Prediction]:
        """The `top` most probable classes of each image, in order; of all, if there are fewer.

        `images`: one or several, each a path, a PIL image, or an array [H, W, 3] or [H, W] uint8, which
        are RGB or gray and not normalised. An image that cannot be used has a `fault` in its place.
        `batch`: images of one forward pass. Raises DataError for something that is no image at all.
        """
        several: Any = [images] if _is_one(images) else images
        each = [given(one, k) for k, one in enumerate(several)]
        return [prediction for prediction, _ in self.predict_given(each, top, batch)]

    def predict_given(
        self, images: Iterable[Given], top: int = 5, batch: int = BATCH
    ) -> Iterator[tuple[Prediction, torch.Tensor | None]]:
        """The prediction for each image, in order, with its prepared pixels [3, S, S] if it has any."""
        size = self.about.preprocessing.image_size
        decodes = self.device if self.device.type == "cuda" else torch.device("cpu")
        threads = len(os.sched_getaffinity(0))
        how = Preparation(size, self.about.preprocessing.interpolation, decodes, threads)
        with GivenImages(self.about.preprocessing.data(), how) as prepared:
            for some in prepared.batches(images, batch):
                best, labels = self._best(some.images, top)
                rows = {place: row for row, place in enumerate(some.places)}
                for k, name in enumerate(some.names):
                    if k in some.faults:
                        yield Prediction(name, [], [], [], some.faults[k]), None
                        continue
                    row = rows[k]
                    if not math.isfinite(best[row][0]):
                        yield Prediction(name, [], [], [], NOT_FINITE), some.images[row]
                        continue
                    names = [self.classes[label] for label in labels[row]]
                    yield Prediction(name, names, best[row], labels[row]), some.images[row]

    @torch.no_grad()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """[N, classes] float32 of prepared `images` [N, 3, H, W]: the mean over the run's views."""
        images = images.to(self.device)
        autocast = autocast_type(self.about.precision, self.device)
        with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            return mean_logits(lambda one: self.network(one).float(), images, self.about.views)

    def _best(self, images: torch.Tensor, top: int) -> tuple[list[list[float]], list[list[int]]]:
        """Probabilities and numbers of the best classes of each image."""
        if not len(images):
            return [], []
        shares = self.logits(images).softmax(1)
        best = shares.topk(min(top, shares.shape[1]), dim=1)
        return best.values.tolist(), best.indices.tolist()


def load(path: str | os.PathLike[str], device: str = "auto") -> Classifier:
    """The classifier at `path`: a run, whose newest checkpoint is taken, a checkpoint, or a safetensors
    file of `hvdtrain export`.

    `device`: `auto` (the first GPU, or the CPU where there is none), `cpu`, `cuda:1`, …. Every byte of
    a checkpoint is checked. Raises CheckpointError or ConfigError.
    """
    chosen = find_device(device)
    return Classifier(open_model(Path(path), chosen), chosen)


def _is_one(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, (str, os.PathLike, Image.Image)) or not isinstance(
        images, (Sequence, Iterable)
    )
