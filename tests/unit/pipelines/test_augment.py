"""Crop windows: inside the image, distributed like torchvision's, and independent of earlier draws."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.images import augment

ASPECT = (0.75, 4 / 3)
sides = st.integers(1, 3000)


def crops(height: int, width: int, count: int, min_area: float = 0.08) -> np.ndarray:
    sizes = np.tile(np.array([[height, width]]), (count, 1))
    draws = augment.draw(np.arange(count), seed=0, epoch=0)
    return augment.random_resized_crop(sizes, draws, min_area=min_area, aspect=ASPECT)


def torchvision_crop(rng: random.Random, height: int, width: int) -> tuple[int, int, int, int]:
    """`RandomResizedCrop.get_params` of torchvision 0.28 with Python's own random numbers."""
    for _ in range(10):
        target = height * width * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    w, h = width, height
    if width / height < ASPECT[0]:
        h = round(w / ASPECT[0])
    elif width / height > ASPECT[1]:
        w = round(h * ASPECT[1])
    return (height - h) // 2, (width - w) // 2, h, w


@given(sides, sides, st.floats(0.001, 1))
def test_windows_lie_inside_the_image(height, width, min_area):
    top, left, h, w = crops(height, width, 20, min_area).T
    assert (h > 0).all()
    assert (w > 0).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (60, 500), (3, 2)])
def test_windows_are_distributed_like_torchvisions(height, width):
    count = 4000
    ours = crops(height, width, count)
    rng = random.Random(0)
    theirs = np.array([torchvision_crop(rng, height, width) for _ in range(count)])
    for mine, reference in zip(ours.T, theirs.T, strict=True):
        values = np.union1d(mine, reference)
        cdfs = [
            np.searchsorted(np.sort(x), values, side="right") / count for x in (mine, reference)
        ]
        # Kolmogorov-Smirnov: 1.95 / sqrt(n / 2) has p = 0.001
        assert np.abs(cdfs[0] - cdfs[1]).max() < 1.95 * math.sqrt(2 / count)


def test_an_image_too_narrow_for_any_crop_gets_the_central_one():
    assert crops(1000, 10, 3).tolist() == [[493, 0, 13, 10]] * 3
    assert crops(10, 1000, 3).tolist() == [[0, 493, 10, 13]] * 3


def test_draws_depend_on_seed_epoch_and_sample_only():
    ids = np.array([7, 3, 11])
    all_ids = augment.draw(np.arange(20), seed=1, epoch=4)
    some = augment.draw(ids, seed=1, epoch=4)
    for name in ("area", "aspect", "place", "flip"):
        assert np.array_equal(getattr(some, name), getattr(all_ids, name)[ids])
    for other in (augment.draw(ids, seed=2, epoch=4), augment.draw(ids, seed=1, epoch=5)):
        assert not np.isin(other.area, some.area).any()


def test_draws_are_uniform_and_uncorrelated():
    draws = augment.draw(np.arange(20000), seed=0, epoch=0)
    columns = np.concatenate([draws.area, draws.aspect, draws.place, draws.flip[:, None]], axis=1)
    assert columns.min() >= 0
    assert columns.max() < 1
    assert np.abs(columns.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(columns.T) - np.eye(columns.shape[1])).max() < 0.035


@given(st.integers(8, 300))
def test_pad_offsets_cover_every_place(size):
    pad, offsets = augment.pad_offsets(augment.draw(np.arange(2000), seed=0, epoch=0), size)
    assert 1 <= pad < size
    assert offsets.min() >= 0
    assert offsets.max() <= 2 * pad
    if size <= 64:
        assert set(offsets[:, 0]) == set(offsets[:, 1]) == set(range(2 * pad + 1))


def test_cifar_is_padded_by_four():
    assert augment.pad_offsets(augment.draw(np.arange(1), seed=0, epoch=0), 32)[0] == 4


@given(sides, sides, st.integers(8, 512), st.floats(0.2, 1), st.booleans())
def test_centre_windows_hold_their_region(height, width, size, ratio, stretch):
    sizes = np.array([[height, width]])
    windows, regions = augment.centre_crop(sizes, size, ratio, stretch=stretch)
    top, left, h, w = windows[0].tolist()
    assert top >= 0
    assert left >= 0
    assert top + h <= height
    assert left + w <= width
    assert h > 0
    assert w > 0
    slack = 1e-3 * max(height, width)
    assert (regions[0, :2] >= -slack).all()
    assert regions[0, 2] <= h + slack
    assert regions[0, 3] <= w + slack


def test_centre_crop_of_a_square_at_full_ratio_is_everything():
    windows, regions = augment.centre_crop(np.array([[32, 32]]), 32, 1.0)
    assert windows.tolist() == [[0, 0, 32, 32]]
    assert regions.tolist() == [[0, 0, 32, 32]]
