"""Losses against independent computations: timm's, and sums written out."""

from __future__ import annotations

import math

import pytest
import torch

from hvdtrain.config.load import parse_config
from hvdtrain.engine.loss import Loss
from hvdtrain.engine.mixing import Part
from hvdtrain.errors import ConfigError

LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 2, 3, 4, 2])
OTHERS = torch.tensor([1, 1, 4, 0, 2, 3])
SHARES = torch.tensor([1.0, 0.3, 0.5, 0.9, 0.15, 0.0])


def part(*, mixed: bool) -> Part:
    images, weights = torch.zeros(6, 3, 1, 1), torch.ones(6)
    return Part(images, LABELS, weights, *((OTHERS, SHARES) if mixed else (None, None)))


def written_out(smoothing: float, threshold: float | None, *, mixed: bool) -> list[float]:
    """In Python's own numbers."""
    found = []
    for row, label, other, share in zip(
        LOGITS.tolist(), LABELS.tolist(), OTHERS.tolist(), SHARES.tolist(), strict=True
    ):
        total = 0.0
        for k, logit in enumerate(row):
            own, its = (smoothing / 5 + (1 - smoothing) * (k == which) for which in (label, other))
            target = share * own + (1 - share) * its if mixed else own
            if threshold is not None:
                target = float(target > threshold)
            p = 1 / (1 + math.exp(-logit))
            total -= target * math.log(p) + (1 - target) * math.log(1 - p)
        found.append(total / 5)
    return found


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
def test_binary_cross_entropy_is_its_formula(
    mixed: bool, smoothing: float, threshold: float | None
) -> None:
    loss = Loss("binary_cross_entropy", smoothing, threshold)
    found = loss.of_each(LOGITS, part(mixed=mixed))
    expected = written_out(smoothing, threshold, mixed=mixed)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_binary_cross_entropy_is_timms(threshold: float | None) -> None:
    timm = pytest.importorskip("timm.loss")
    theirs = timm.BinaryCrossEntropy(smoothing=0.1, target_threshold=threshold)
    ours = Loss("binary_cross_entropy", 0.1, threshold)
    assert ours.of_each(LOGITS, part(mixed=False)).mean() == pytest.approx(
        float(theirs(LOGITS, LABELS)), rel=1e-6
    )
    own, other = (torch.nn.functional.one_hot(y, 5) * 0.9 + 0.02 for y in (LABELS, OTHERS))
    soft = SHARES[:, None] * own + (1 - SHARES[:, None]) * other
    assert ours.of_each(LOGITS, part(mixed=True)).mean() == pytest.approx(
        float(theirs(LOGITS, soft)), rel=1e-6
    )


def test_a_threshold_without_binary_cross_entropy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"target_threshold: 0\.2 needs loss"):
        parse_config("phases: [{epochs: 1}]\ntrain: {target_threshold: 0.2}")
