"""Random erasing: how often, how much, and of what it is a function."""

from __future__ import annotations

import numpy as np
import torch

from hvdtrain.engine.erasing import AREA, ASPECT, Erasing


def boxes(count: int, side: int = 64, probability: float = 1.0, seed: int = 0) -> np.ndarray:
    """[count, 4]: rows from, to, columns from, to."""
    return Erasing(probability, seed)._boxes(np.arange(count), 0, side, side).T


def test_off_leaves_the_images_themselves() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert Erasing().erased(images, np.arange(2), 0) is images


def test_one_box_is_filled_with_the_mean_colour() -> None:
    images = torch.ones(32, 3, 24, 16).contiguous(memory_format=torch.channels_last)
    found = Erasing(1.0).erased(images, np.arange(32), 1)
    assert found.is_contiguous(memory_format=torch.channels_last)
    gone = (found == 0).all(1)
    assert torch.equal(found, torch.where(gone[:, None], 0.0, 1.0).expand_as(found))
    for mask, (top, bottom, left, right) in zip(
        gone, Erasing(1.0)._boxes(np.arange(32), 1, 24, 16).T.tolist(), strict=True
    ):
        expected = torch.zeros(24, 16, dtype=torch.bool)
        expected[top:bottom, left:right] = True
        assert torch.equal(mask, expected)


def test_so_many_are_erased() -> None:
    erased = (np.diff(boxes(20000, probability=0.25)[:, :2]) > 0).mean()
    assert abs(erased - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 20000)


def test_areas_and_aspects_are_those_of_the_paper() -> None:
    """As torchvision draws them, written out with numpy's own random numbers."""
    side, count, random = 64, 20000, np.random.default_rng(0)
    theirs = []
    while len(theirs) < count:
        area = side * side * random.uniform(*AREA)
        aspect = np.exp(random.uniform(*np.log(ASPECT)))
        tall, wide = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if tall < side and wide < side:
            top, left = random.integers(0, side - tall + 1), random.integers(0, side - wide + 1)
            theirs.append((top, top + tall, left, left + wide))
    ours, other = boxes(count, side), np.array(theirs)
    assert (np.diff(ours[:, :2]) > 0).all()
    for column in range(4):
        # Kolmogorov-Smirnov: 1.95 / sqrt(n / 2) has p = 0.001.
        values = np.arange(side + 1)
        one, two = (np.searchsorted(np.sort(x[:, column]), values, "right") for x in (ours, other))
        assert np.abs(one - two).max() / count < 1.95 * np.sqrt(2 / count)


def test_it_depends_on_seed_epoch_and_sample_only() -> None:
    images, ids = torch.ones(6, 3, 32, 32), np.array([3, 1, 4, 15, 9, 2])
    whole = Erasing(0.7, 5).erased(images, ids, 2)
    parts = [Erasing(0.7, 5).erased(images[i::2], ids[i::2], 2) for i in (0, 1)]
    assert torch.equal(whole[0::2], parts[0])
    assert torch.equal(whole[1::2], parts[1])
    for other in (Erasing(0.7, 6).erased(images, ids, 2), Erasing(0.7, 5).erased(images, ids, 3)):
        assert not torch.equal(other, whole)


def test_an_image_in_which_no_box_fits_stays() -> None:
    images = torch.ones(4, 3, 1, 1)
    assert torch.equal(Erasing(1.0).erased(images, np.arange(4), 0), images)
