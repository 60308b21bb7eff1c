"""Measures the noise scale at checkpoints; the ranks share the batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hvdtrain import activity
from hvdtrain.analysis.study.images import Choice
from hvdtrain.analysis.study.loss import NetworkLoss
from hvdtrain.analysis.study.noise.estimate import FEWEST, Estimate, Sums, estimate
from hvdtrain.analysis.study.noise.training_loss import TrainingLoss
from hvdtrain.analysis.study.opened import Opened, opened
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.errors import CheckpointError, ConfigError
from hvdtrain.run.subject import Subject

OWN = 0
"""As `Choice.batch`: the images of one forward pass of the run."""
PASSES = 2
"""Over the images: one for the sum of all gradients, one for the product of each batch's with it. So no
gradient is kept but the sum."""


def measure(subject: Subject, choice: Choice, comm: Comm) -> tuple[Opened, dict[str, Any]]:
    """The numbers for JSON of one checkpoint, those of `Estimate` among them, the same on every rank.

    Gradients are those of training: see `TrainingLoss`. A `choice.batch` of OWN is the run's own. Every rank must
    call. Raises ConfigError for too few images, and CheckpointError where the gradients are not finite, or all
    the same.
    """
    chosen = _drawn(subject, choice)
    with opened(subject, chosen, comm, whole=False, training=True) as it:
        activity.enter(
            f"noise scale of {subject.name}", PASSES * it.batches, "batches", time_left=True
        )
        with together(comm):
            _require_images(it)
        loss = TrainingLoss(it, subject, comm)
        sums, mean = sums_over_ranks(loss, comm)
        with together(comm):
            found = _found(sums, subject)
        if loss.normed:
            it.warnings.extend(_other_batch(subject, float(sums.sizes.mean())))
        return it, {"parameters": loss.size, "loss": mean, **found.as_dict()}


def seconds(subject: Subject, choice: Choice, comm: Comm) -> tuple[Opened, float]:
    """How long `measure` would take, by one batch. Every rank must call."""
    chosen = _drawn(subject, choice)
    with opened(subject, chosen, comm, whole=False, only_first=True, training=True) as it:
        loss = TrainingLoss(it, subject, comm)
        return it, PASSES * it.seconds(comm, loss.gradient)


def sums_over_ranks(loss: NetworkLoss, comm: Comm) -> tuple[Sums, float]:
    """What `estimate` needs of the batches of all ranks, and the mean loss. Every rank must call."""
    own, mean, total = [], 0.0, torch.zeros(loss.size, dtype=torch.float64, device=loss.device)
    for done, (images, value, gradient) in enumerate(loss.batch_gradients(), 1):
        own.append((float(images), float(torch.dot(gradient, gradient))))
        mean += float(value) / loss.total
        total += gradient
        activity.step(done)
    comm.sum_(total, "noise.gradient")
    products = []
    for done, (_images, _value, gradient) in enumerate(loss.batch_gradients(), len(own) + 1):
        products.append(float(torch.dot(gradient, total)))
        activity.step(done)
    rows = [(*both, product) for both, product in zip(own, products, strict=True)]
    table = _joined(rows, comm)
    losses = comm.gather(torch.tensor([mean], dtype=torch.float64), "noise.loss")
    return Sums(table[:, 0], table[:, 1], table[:, 2]), float(losses.sum())


def _joined(rows: list[tuple[float, float, float]], comm: Comm) -> np.ndarray:
    """The rows of all ranks, [n, 3], in the order of the batches: rank r has every `size`-th from r on."""
    counts = comm.gather(torch.tensor([len(rows)], dtype=torch.float64), "noise.count")
    table = torch.zeros(int(counts.sum()), 3, dtype=torch.float64)
    if rows:
        table[comm.rank :: comm.size] = torch.tensor(rows, dtype=torch.float64)
    return comm.sum_(table, "noise.rows").numpy()


def _drawn(subject: Subject, choice: Choice) -> Choice:
    """Batches at random, as those of training, and enough to judge their spread."""
    batch = choice.batch or subject.epoch.batch_per_worker
    return replace(choice, batch=batch, shuffled=True, fewest=FEWEST)


def _require_images(it: Opened) -> None:
    if (images := int(it.about["images"])) < FEWEST:
        raise ConfigError(f"--images: {images} images: the noise scale needs at least {FEWEST}")


def _other_batch(subject: Subject, size: float) -> list[str]:
    """A warning where batch norm sees other numbers of images than in training."""
    own = subject.epoch.batch_per_worker
    if 0.75 * own <= size <= 1.34 * own:
        return []
    return [
        f"{subject.path}: batch norm has the statistics of {size:.3g} images here, and of {own} in training, where "
        f"the noise scale may be another: take --batch {own}, and at least --images {FEWEST * own}"
    ]


def _found(sums: Sums, subject: Subject) -> Estimate:
    found = estimate(sums)
    if found is not None:
        return found
    if not np.isfinite(sums.squares).all():
        raise CheckpointError(
            f"{subject.path}: its gradients are not finite: take an earlier checkpoint"
        )
    raise CheckpointError(
        f"{subject.path}: the gradients of all batches are equal: there is no noise to measure"
    )
