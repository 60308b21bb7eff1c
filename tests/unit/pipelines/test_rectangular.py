"""Rectangular evaluation: groups of similar shape, each image once, cropped the same on any ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hvdtrain.config.data import Data
from pipelines.images import augment
from pipelines.loader import Loaders
from pipelines.rectangular import GROUP, Rectangles
from tests.unit.pipelines.samples import Epoch, photograph

LEVELS = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255, 1 / 255, 1 / 255]}  # images in 0..255
COUNT = 150


def some_sizes(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(30, 90, (count, 2))


@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 9))
def test_each_image_counts_once_in_batches_of_one_shape(count, largest, world_size):
    rectangles = Rectangles(some_sizes(count))
    targets = rectangles.targets(64)
    batch = rectangles.batch(largest)
    assert batch <= largest
    ranks = [list(rectangles.shares(batch, r, world_size)) for r in range(world_size)]
    assert len({len(shares) for shares in ranks}) == 1
    counted = []
    for share in (share for shares in ranks for share in shares):
        assert share.indices.shape == share.weights.shape == (batch,)
        assert len(np.unique(targets[share.indices], axis=0)) == 1
        counted += share.indices[share.weights == 1].tolist()
    assert sorted(counted) == list(range(count))


def test_rectangles_have_the_mean_aspect_of_their_group():
    """recipes: short side s, the other s × mean aspect rounded down to a multiple of 8."""
    sizes = some_sizes(2 * GROUP)
    aspect = sizes[:, 1] / sizes[:, 0]
    tall = np.argsort(aspect, kind="stable")[:GROUP]
    targets = Rectangles(sizes).targets(100)
    expected = int(100 / aspect[tall].mean()) // 8 * 8
    assert targets[tall].tolist() == [[expected, 100]] * GROUP
    squares = Rectangles(np.full((3, 2), 50)).targets(100)
    assert squares.tolist() == [[100, 100]] * 3


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 300), st.integers(8, 300))
def test_a_rectangle_lies_inside_its_image(height, width, tall, wide):
    sizes, target = np.array([[height, width]]), np.array([[tall, wide]])
    windows, regions = augment.centre_crop(sizes, target, 0.875)
    top, left, h, w = windows[0].tolist()
    assert min(top, left) >= 0
    assert top + h <= height
    assert left + w <= width
    slack = 1e-3 * max(height, width)
    assert (regions[0, :2] >= -slack).all()
    assert regions[0, 2] <= h + slack
    assert regions[0, 3] <= w + slack
    # Both axes have the same scale, except for rounding to whole pixels.
    scale = (regions[0, 2:] - regions[0, :2]) / target[0]
    assert scale[0] == pytest.approx(scale[1], rel=1.5 / min(tall, wide))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """`COUNT` photographs of random shapes in one class."""
    root = tmp_path_factory.mktemp("many")
    (root / "a").mkdir()
    for k, (height, width) in enumerate(some_sizes(COUNT).tolist()):
        photograph(k, height, width).save(root / "a" / f"{k:03}.png")
    return root


def evaluated(many, world_size: int, batch: int) -> dict[int, torch.Tensor]:
    """Images by sample, over all ranks."""
    data = Data.model_validate({"val": str(many), "decode_threads": 1, **LEVELS})
    ranks = [
        Loaders(
            data,
            seed=0,
            rank=rank,
            world_size=world_size,
            device=torch.device("cpu"),
            rect_val=True,
        )
        for rank in range(world_size)
    ]
    offers = [loaders.offer() for loaders in ranks]
    images, counts = {}, []
    for loaders in ranks:
        with loaders:
            loaders.accept(offers)
            epoch = Epoch(val_image_size=32, batch_per_worker=batch, rect_val=True)
            batches = list(loaders.val(epoch))
        counts.append([len(b.images) for b in batches])
        for b in batches:
            for i, image, weight in zip(b.indices.tolist(), b.images, b.weights, strict=True):
                if weight:
                    assert i not in images
                    images[i] = image.clone()
    assert all(c == counts[0] for c in counts)
    return images


def test_one_two_and_four_ranks_see_the_same_images(many):
    one = evaluated(many, 1, 64)
    assert sorted(one) == list(range(COUNT))
    assert len({tuple(image.shape) for image in one.values()}) == 3
    for world_size, batch in ((2, 20), (4, 64)):
        other = evaluated(many, world_size, batch)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[i], other[i]) for i in one)


def test_rectangles_equal_pils(many):
    """Within 1.01 levels of 255, as squares are."""
    images = evaluated(many, 1, 64)
    targets = Rectangles(some_sizes(COUNT)).targets(32)
    checked = 0
    for i, image in images.items():
        height, width = targets[i].tolist()
        with Image.open(many / "a" / f"{i:03}.png") as opened:
            picture = opened.convert("RGB")
        short = min(picture.size)
        size = tuple(37 * side // short for side in picture.size)
        if size[0] < width or size[1] < height:
            continue  # enlarged further, so that the crop fits
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        resized = picture.resize(size, Image.Resampling.BILINEAR)
        reference = np.asarray(resized.crop((left, top, left + width, top + height)), np.float32)
        error = np.abs(image.permute(1, 2, 0).numpy() - reference)
        assert error[1:-1, 1:-1].max() <= 1.01
        checked += 1
    assert checked > COUNT / 2
