"""What an evaluation found for each image, from all ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hvdtrain.comm.ranks import Comm
from hvdtrain.engine.mixing import Batch
from pipelines.order import COPY

_COLUMNS = 5  # id, class, predicted class, its probability, weight


@dataclass(frozen=True)
class Outcomes:
    """Of all images, in the order of the dataset."""

    ids: np.ndarray
    """[N] int64: numbers of the images in the dataset."""
    labels: np.ndarray
    """[N] int64: their classes."""
    predicted: np.ndarray
    """[N] int64: the most probable classes."""
    confidence: np.ndarray
    """[N] float64: the probabilities of these, 0-1."""

    @property
    def right(self) -> np.ndarray:
        """[N] bool."""
        result: np.ndarray = self.predicted == self.labels
        return result

    def confusion(self, classes: int) -> np.ndarray:
        """Images of each class (row) by predicted class (column): [classes, classes] int64."""
        pairs = self.labels * classes + self.predicted
        return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


class Collector:
    """Notes the outcome of each image of this rank during an evaluation: 40 bytes an image."""

    def __init__(self) -> None:
        self._rows: list[torch.Tensor] = []

    def add(self, batch: Batch, logits: torch.Tensor) -> None:
        """Note a batch and its `logits` [n, classes]."""
        best = logits.softmax(1).max(1)
        columns = (
            torch.from_numpy(batch.copies % COPY),
            batch.labels,
            best.indices,
            best.values,
            batch.weights,
        )
        self._rows.append(torch.stack([column.double().cpu() for column in columns], dim=1))

    def gather(self, comm: Comm) -> Outcomes:
        """Those of all ranks, on every rank, which all must call it."""
        own = torch.cat(self._rows) if self._rows else torch.empty((0, _COLUMNS))
        rows = comm.gather(own.double().flatten(), "outcomes").reshape(-1, _COLUMNS).numpy()
        rows = rows[rows[:, 4] > 0]  # the others fill batches
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        whole = rows[:, :3].astype(np.int64)
        return Outcomes(whole[:, 0], whole[:, 1], whole[:, 2], rows[:, 3])
