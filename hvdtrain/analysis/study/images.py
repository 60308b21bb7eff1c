"""The images on which a checkpoint's loss is studied: a fixed choice, prepared as for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import psutil
import torch

from hvdtrain.comm.ranks import Comm
from hvdtrain.errors import DataError
from hvdtrain.run.evaluation import require_held_out
from hvdtrain.run.subject import Subject
from pipelines.datasets import open_datasets
from pipelines.fixed import Augmented, FixedImages, Preparation, chosen_batches
from pipelines.sources import Source

Split = Literal["train", "val"]
CHOICE = 0
"""Seed of the choice of images: the same for every checkpoint and every `--seed`."""
MEMORY_SHARE = 0.25
"""Part of the free memory of a host in which its ranks together keep images by default."""


@dataclass(frozen=True)
class Choice:
    """On what the loss is evaluated, and how."""

    split: Split = "train"
    images: int = 2000
    """Of the split, over all ranks; all of it if it has fewer."""
    batch: int = 125
    """Images of one forward pass; the last batches may be one image shorter."""
    dtype: Literal["fp32", "fp64"] = "fp32"
    memory_gb: float | None = None
    """In which each rank keeps images; None: its part of MEMORY_SHARE."""
    shuffled: bool = False
    """Whether each batch is a random sample; else all have about the same share of each class."""
    fewest: int = 1
    """Batches: they are smaller if there were fewer."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """In which the network computes."""
        return torch.float64 if self.dtype == "fp64" else torch.float32


@dataclass(frozen=True)
class ImageSet:
    """The dataset of one split, and the batches chosen of it, equal on all ranks."""

    source: Source
    batches: list[np.ndarray]
    fingerprint: str
    warnings: list[str]

    @property
    def num_images(self) -> int:
        """Of all batches."""
        return sum(map(len, self.batches))


def open_images(subject: Subject, choice: Choice, split: Split) -> ImageSet:
    """List the images of `split` and choose. Raises DataError if the run names none."""
    data = subject.cfg.data
    if split == "train" and data.train is None:
        raise DataError(
            f"{subject.path}: its run has no data.train: name images with data.train=DIR"
        )
    if split == "val" and data.val is None:
        raise DataError(
            f"{subject.path}: its run has no data.val: name images with data.val=DIR, or take "
            "--split train"
        )
    if split == "train" and data.val_share is None:
        data = data.model_copy(update={"val": None})
    found = open_datasets(data, subject.classes, seed=subject.cfg.seed, training=split == "train")
    source, fingerprint = found.sources[split], found.fingerprints[split]
    warnings = list(found.warnings)
    recorded = subject.meta.get("data", {}).get(split, {}).get("fingerprint", fingerprint)
    if split == "val":
        require_held_out(subject.cfg, subject.meta, fingerprint)
    elif recorded != fingerprint:
        warnings.append(
            f"data.train: {data.train}: not the images that {subject.name} trained with"
        )
    if subject.epoch.rect_val:
        warnings.append(f"phases.rect_val: {subject.name}: here images are squares")
    drawn = (len(source), choice.images, choice.batch, CHOICE)
    batches = chosen_batches(*drawn, shuffled=choice.shuffled, fewest=choice.fewest)
    return ImageSet(source, batches, fingerprint, warnings)


def fixed_images(
    subject: Subject,
    choice: Choice,
    source: Source,
    batches: Sequence[np.ndarray],
    comm: Comm,
    device: torch.device,
    cores: int,
    *,
    training: bool = False,
) -> FixedImages:
    """The loader of this rank's `batches`, prepared as for evaluation, or for training in the checkpoint's
    epoch."""
    memory_bytes = MEMORY_SHARE * psutil.virtual_memory().available / comm.local_size
    if choice.memory_gb is not None:
        memory_bytes = choice.memory_gb * 1e9
    epoch, data = subject.epoch, subject.cfg.data
    threads = data.decode_threads or cores
    how = Preparation(epoch.val_image_size, epoch.interpolation, device, threads)
    if training:
        low, high = epoch.crop_aspect or data.crop_aspect
        drawn = Augmented(subject.cfg.seed, epoch.index, epoch.min_crop_area, (low, high))
        how = replace(how, image_size=epoch.image_size, augmented=drawn)
    return FixedImages(source, batches, data, how, memory_bytes)
