"""An evaluation with its page."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config
from hvdtrain.engine.mixing import Batch
from hvdtrain.errors import ResourceError
from hvdtrain.files import PartFile
from hvdtrain.inference.calibration import expected_calibration_error, reliability
from hvdtrain.inference.description import Preprocessing
from hvdtrain.inference.evaluation_page import Mistake, render, write
from hvdtrain.inference.outcomes import Collector, Outcomes
from hvdtrain.inference.pictures import data_url
from hvdtrain.plan.epochs import Epoch
from hvdtrain.run.evaluation import evaluate_run
from pipelines.fixed import Preparation
from pipelines.given import Given, GivenImages
from pipelines.loader import Loaders
from pipelines.sources.left_out import printable

MISTAKES = 24
"""Pictures of the most confident mistakes."""


def evaluate_with_page(path: Path, overrides: list[str], comm: Comm, page: Path) -> dict[str, Any]:
    """As `evaluate_run`, and rank 0 writes `page`; the result also has its path `html` and `ece` (0-1).

    Every rank must call. Raises ResourceError if the page cannot be written, before the evaluation begins if
    that can be seen.
    """
    with together(comm):
        if comm.rank == 0:
            _require_writable(page)
    collector = _Page(comm, page)
    result = evaluate_run(path, overrides, comm, collector)
    return {**result, "ece": collector.ece, "html": str(page)}


class _Page:
    """Collects outcomes, and writes the page while the images are still open."""

    def __init__(self, comm: Comm, page: Path) -> None:
        self._comm, self._page, self._collector = comm, page, Collector()
        self.ece = 0.0

    def add(self, batch: Batch, logits: torch.Tensor) -> None:
        """Note the outcomes of a batch."""
        self._collector.add(batch, logits)

    def end(self, result: dict[str, Any], cfg: Config, epoch: Epoch, loaders: Loaders) -> None:
        """Write the page on rank 0; every rank must call."""
        how = Preprocessing.of(cfg.data, epoch)
        outcomes = self._collector.gather(self._comm)
        bins = reliability(outcomes.confidence, outcomes.right)
        self.ece = expected_calibration_error(bins)
        with together(self._comm):
            if self._comm.rank == 0:
                mistakes = _mistakes(outcomes, loaders, how)
                write(self._page, render(result, outcomes, loaders.classes, mistakes))


def _mistakes(outcomes: Outcomes, loaders: Loaders, how: Preprocessing) -> list[Mistake]:
    """The most confident ones, with their pictures."""
    wrong = np.flatnonzero(~outcomes.right)
    order = wrong[np.argsort(-outcomes.confidence[wrong], kind="stable")][:MISTAKES]
    source, classes = loaders.sources["val"], [printable(name) for name in loaders.classes]
    each = [int(outcomes.ids[k]) for k in order]
    given = [Given(source.name(i), partial(source.read, i)) for i in each]
    pictures: dict[str, str] = {}
    threads = len(os.sched_getaffinity(0))
    wanted = Preparation(how.image_size, how.interpolation, torch.device("cpu"), threads)
    with GivenImages(how.data(), wanted) as prepared:
        for some in prepared.batches(given, MISTAKES):
            for place, image in zip(some.places, some.images, strict=True):
                pictures[some.names[place]] = data_url(image, how)
    return [
        Mistake(
            pictures.get(source.name(i), ""),
            printable(source.name(i)),
            classes[outcomes.labels[k]],
            classes[outcomes.predicted[k]],
            float(outcomes.confidence[k]),
        )
        for k, i in zip(order.tolist(), each, strict=True)
    ]


def _require_writable(page: Path) -> None:
    try:
        PartFile(page).discard()
    except OSError as error:
        raise ResourceError(f"--html: {page}: cannot be written: {error.strerror}") from None
