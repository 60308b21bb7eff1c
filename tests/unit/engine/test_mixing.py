"""Mixup and CutMix follow their definitions and do not depend on earlier batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional

from hvdtrain.config.load import parse_config
from hvdtrain.engine.loss import Loss
from hvdtrain.engine.mixing import Mixing
from hvdtrain.errors import ConfigError

KINDS = {"mixup": {"mixup": 0.4}, "cutmix": {"cutmix": 1.0}, "both": {"mixup": 0.4, "cutmix": 1.0}}


@dataclass
class Images:
    """A batch made by hand."""

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    copies: np.ndarray
    partners: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None


def batch(count: int = 16, side: int = 12) -> Images:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, side, side, generator=generator)
    return Images(
        images.contiguous(memory_format=torch.channels_last),
        torch.arange(count) % 5,
        torch.ones(count),
        np.arange(100, 100 + count),
    )


def test_off_leaves_everything_as_it_is() -> None:
    given = batch()
    first, second = Mixing().parts(given, given.images, 2, 0)
    assert torch.equal(torch.cat([first.images, second.images]), given.images)
    assert first.others is None
    logits = torch.randn(8, 5)
    expected = functional.cross_entropy(logits, first.labels, reduction="none", label_smoothing=0.1)
    assert torch.equal(Loss(label_smoothing=0.1).of_each(logits, first), expected)


def test_mixup_averages_each_image_with_the_next() -> None:
    given = batch()
    (part,) = Mixing(mixup=0.4).parts(given, given.images, 1, 3)
    share = part.shares[:, None, None, None]
    expected = share * given.images + (1 - share) * given.images.roll(-1, 0)
    assert torch.allclose(part.images, expected, atol=1e-6)
    assert part.others.tolist() == given.labels.roll(-1).tolist()


def test_cutmix_takes_a_box_of_the_next_and_its_area_as_the_share() -> None:
    given = batch(200)
    (part,) = Mixing(cutmix=1.0).parts(given, given.images, 1, 3)
    other = given.images.roll(-1, 0)
    taken = (part.images == other).all(1)
    assert torch.equal(torch.where(taken[:, None], other, given.images), part.images)
    assert torch.allclose(1 - taken.float().mean((1, 2)), part.shares)
    for mask in taken:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            top, left = int(rows[0]), int(columns[0])
            assert mask[top : top + len(rows), left : left + len(columns)].all()
            assert int(mask.sum()) == len(rows) * len(columns)
    assert 0.3 < float(part.shares.mean()) < 0.8


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    """Kolmogorov-Smirnov against NumPy's: 1.95 / sqrt(n / 2) has p = 0.001."""
    count = 4000
    given = batch(count, side=1)
    (part,) = Mixing(mixup=alpha).parts(given, given.images, 1, 0)
    ours = np.sort(part.shares.numpy())
    theirs = np.sort(np.random.default_rng(0).beta(alpha, alpha, count))
    values = np.union1d(ours, theirs)
    gap = np.searchsorted(ours, values, "right") - np.searchsorted(theirs, values, "right")
    assert np.abs(gap).max() / count < 1.95 * np.sqrt(2 / count)


@pytest.mark.parametrize("kind", KINDS)
def test_mixing_depends_on_seed_epoch_and_sample_only(kind: str) -> None:
    mixing = Mixing(**KINDS[kind], seed=4)
    (one,) = mixing.parts(batch(), batch().images, 1, 2)
    (again,) = mixing.parts(batch(), batch().images, 1, 2)
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.shares, again.shares)
    for other in (
        Mixing(**KINDS[kind], seed=5).parts(batch(), batch().images, 1, 2),
        mixing.parts(batch(), batch().images, 1, 3),
    ):
        (part,) = other
        assert not torch.equal(part.images, one.images)
    halves = list(mixing.parts(batch(), batch().images, 2, 2))
    inner = [*range(7), *range(8, 15)]  # the last of a micro-batch has another partner
    assert torch.equal(torch.cat([h.images for h in halves])[inner], one.images[inner])
    assert one.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_weight_are_not_mixed(kind: str) -> None:
    given = batch()
    given.weights[[3, 9]] = 0
    (part,) = Mixing(**KINDS[kind]).parts(given, given.images, 1, 0)
    for unmixed in (2, 3, 8, 9):
        assert torch.equal(part.images[unmixed], given.images[unmixed])
        assert part.shares[unmixed] == 1
    assert not torch.equal(part.images[0], given.images[0])


def test_both_means_half_of_each() -> None:
    given = batch(400, side=8)
    (part,) = Mixing(mixup=1.0, cutmix=1.0).parts(given, given.images, 1, 0)
    other = given.images.roll(-1, 0)
    pure = (part.images == other).all(1) | (part.images == given.images).all(1)
    assert 140 < int(pure.flatten(1).all(1).sum()) < 260


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_equals_that_of_soft_targets(smoothing: float) -> None:
    (part,) = Mixing(mixup=1.0).parts(batch(), batch().images, 1, 0)
    logits = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
    own, other = (functional.one_hot(y, 5).float() for y in (part.labels, part.others))
    targets = part.shares[:, None] * own + (1 - part.shares[:, None]) * other
    expected = functional.cross_entropy(
        logits, targets, reduction="none", label_smoothing=smoothing
    )
    assert torch.allclose(
        Loss(label_smoothing=smoothing).of_each(logits, part), expected, atol=1e-6
    )


def test_one_share_for_a_whole_forward_pass() -> None:
    given = batch(24)
    mixing = Mixing(mixup=0.4, share="batch")
    first, second = mixing.parts(given, given.images, 2, 3)
    assert len({*first.shares.tolist()}) == len({*second.shares.tolist()}) == 1
    assert first.shares[0] != second.shares[0]
    others = given.images[:12].roll(-1, 0)
    expected = torch.lerp(others, given.images[:12], first.shares[0])
    assert torch.allclose(first.images, expected, atol=1e-6)
    boxes = Mixing(cutmix=1.0, share="batch").parts(given, given.images, 1, 3)
    taken = (next(boxes).images == given.images.roll(-1, 0)).all(1)
    assert taken[0].any()
    assert (taken == taken[0]).all()
    shares = [
        next(mixing.parts(batch(2, side=1), batch(2, side=1).images, 1, k)).shares
        for k in range(40)
    ]
    assert len({float(share[0]) for share in shares}) == 40


def test_a_random_partner_is_drawn_from_the_forward_pass() -> None:
    given = batch(40)
    given.labels = torch.arange(40)
    mixing = Mixing(mixup=0.4, partner="random", seed=2)
    parts = list(mixing.parts(given, given.images, 2, 3))
    for part, own in zip(parts, given.labels.chunk(2), strict=True):
        assert sorted(part.others.tolist()) == own.tolist()
        others = given.images[part.others]
        expected = torch.lerp(others, given.images[own], part.shares[:, None, None, None])
        assert torch.allclose(part.images, expected, atol=1e-6)
    again = list(mixing.parts(given, given.images, 2, 3))
    assert all(torch.equal(a.images, b.images) for a, b in zip(parts, again, strict=True))
    [other] = mixing.parts(given, given.images, 1, 4)
    assert other.others[:20].tolist() != parts[0].others.tolist()
    given.weights[7] = 0
    [masked] = mixing.parts(given, given.images, 1, 3)
    [partner] = (masked.others == 7).nonzero()
    for unmixed in (7, int(partner)):
        assert torch.equal(masked.images[unmixed], given.images[unmixed])
        assert masked.shares[unmixed] == 1


def test_doubled_mixes_with_the_images_that_came_beside() -> None:
    given, other = batch(12), batch(24)
    given.partners = other.images[12:], torch.arange(12) + 100, torch.ones(12)
    given.partners[2][4] = 0
    parts = list(Mixing(mixup=0.4, partner="doubled").parts(given, given.images, 2, 3))
    shares = torch.cat([part.shares for part in parts])
    assert shares[4] == 1
    expected = torch.lerp(other.images[12:], given.images, shares[:, None, None, None])
    assert torch.allclose(torch.cat([part.images for part in parts]), expected, atol=1e-6)
    assert torch.cat([part.others for part in parts]).tolist() == list(range(100, 112))
    given.partners = None
    [tried] = Mixing(mixup=0.4, partner="doubled").parts(given, given.images, 1, 3)
    assert tried.others.tolist() == given.labels.roll(-1).tolist()


def test_an_image_is_not_mixed_with_its_own_copies() -> None:
    given = batch(24)
    given.labels = torch.arange(24) // 3
    [part] = Mixing(mixup=0.4, repeats=3).parts(given, given.images, 1, 3)
    assert not (part.others == part.labels).any()


@pytest.mark.parametrize("setting", ["repeats: 2", "random_erasing: 0.1", "on_bad: mask"])
def test_what_does_not_go_with_doubled_partners_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"data.{setting} cannot be had with"):
        parse_config(
            f"data: {{{setting}}}\ntrain: {{mix_partner: doubled, mixup: 1.0}}\nphases: [{{epochs: 1}}]"
        )


@pytest.mark.parametrize("setting", ["mix_share: batch", "mix_partner: random"])
def test_how_to_mix_without_mixing_is_refused(setting: str) -> None:
    parse_config(f"train: {{{setting}, cutmix: 1.0}}\nphases: [{{epochs: 1}}]")
    with pytest.raises(ConfigError, match=f"{setting} needs mixup or cutmix"):
        parse_config(f"train: {{{setting}}}\nphases: [{{epochs: 1}}]")
