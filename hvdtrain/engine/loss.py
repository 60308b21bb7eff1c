"""The loss of each image in training: `train.loss`, `train.label_smoothing`, `train.target_threshold`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch.nn import functional

from hvdtrain.config.train import Train


class Targets(Protocol):
    """Labels [n] int64, and with mixing the labels [n] of the images mixed in and the share [n] of each
    image itself; both are None without."""

    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def others(self) -> torch.Tensor | None: ...
    @property
    def shares(self) -> torch.Tensor | None: ...


@dataclass(frozen=True)
class Loss:
    """What is minimised in training; evaluations always report the cross entropy."""

    kind: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    label_smoothing: float = 0.0
    """Share of a target that is spread evenly over all classes."""
    target_threshold: float | None = None
    """Of binary cross entropy: targets above it are 1, the others 0."""

    @classmethod
    def of(cls, train: Train) -> Loss:
        """By the settings of a run."""
        return cls(train.loss, train.label_smoothing, train.target_threshold)

    def of_each(self, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
        """The loss of each image, [n], from `logits` [n, classes]."""
        if self.kind == "binary_cross_entropy":
            return self._binary(logits, targets)
        losses = self._cross_entropy(logits, targets.labels)
        if targets.others is None or targets.shares is None:
            return losses
        return torch.lerp(self._cross_entropy(logits, targets.others), losses, targets.shares)

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.label_smoothing
        )

    def _binary(self, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Mean over the classes of the cross entropy of each class alone.

        Source: Wightman et al. 2021, https://arxiv.org/abs/2110.00476, section 3; mean and threshold as in
        timm's BinaryCrossEntropy.
        """
        wanted = self._smoothed(logits, targets.labels)
        if targets.others is not None and targets.shares is not None:
            other = self._smoothed(logits, targets.others)
            wanted = torch.lerp(other, wanted, targets.shares[:, None])
        if self.target_threshold is not None:
            wanted = (wanted > self.target_threshold).to(logits.dtype)
        losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return losses.mean(1)

    def _smoothed(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Targets [n, classes]: the label's with what smoothing leaves it, the others with their share."""
        rest = self.label_smoothing / logits.shape[1]
        filled = torch.full_like(logits, rest)
        return filled.scatter_(1, labels[:, None], 1 - self.label_smoothing + rest)
