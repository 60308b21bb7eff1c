"""Rotation and translation move what they say, by PIL and NumPy, and nothing else decides by how much."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hvdtrain.config.data import Data
from pipelines.images.affine import RandomAffine
from pipelines.images.on_device import Changes
from tests.unit.pipelines.samples import photograph

IDS = np.arange(40, 60)
PICTURES = [photograph(k, 21, 24) for k in range(len(IDS))]
LEVELS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
MEAN, STD = (torch.tensor(LEVELS[key])[:, None, None] for key in ("mean", "std"))


def moving(rotation: float = 0.0, translation: float = 0.0, seed: int = 1) -> RandomAffine:
    values = {"rotation": rotation, "translation": translation, **LEVELS}
    return RandomAffine(Data.model_validate(values), seed)


def images() -> torch.Tensor:
    stack = np.stack([np.asarray(p, dtype=np.float32) / 255 for p in PICTURES])
    planes = torch.from_numpy(stack).permute(0, 3, 1, 2)
    return ((planes - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def levels(found: torch.Tensor) -> np.ndarray:
    """[N, H, W, 3] in 0-255."""
    return ((found * STD + MEAN) * 255).permute(0, 2, 3, 1).numpy()


def test_rotation_equals_pils() -> None:
    affine = moving(rotation=30.0)
    turned = affine.matrices(IDS, 2, (21, 24))
    degrees = np.rad2deg(np.arctan2(turned[:, 0, 1], turned[:, 0, 0]))
    found = levels(affine(images(), IDS, 2))
    for picture, angle, image in zip(PICTURES, degrees, found, strict=True):
        expected = np.asarray(picture.rotate(-angle, Image.Resampling.NEAREST), dtype=np.float32)
        assert (np.abs(image - expected) > 0.01).mean() < 0.02  # where rounding decides
    many = moving(rotation=30.0).matrices(np.arange(20_000), 0, (8, 8))
    angles = np.rad2deg(np.arctan2(many[:, 0, 1], many[:, 0, 0]))
    shares = np.histogram(angles, bins=10, range=(-30, 30))[0] / 20_000
    assert np.abs(shares - 0.1).max() < 4 * np.sqrt(0.1 * 0.9 / 20_000)


def test_translation_moves_by_whole_pixels_and_leaves_black() -> None:
    affine = moving(translation=0.25)
    shifts = -affine.matrices(IDS, 0, (21, 24))[:, :, 2]
    assert np.array_equal(shifts, np.rint(shifts))
    assert np.abs(shifts).max(axis=0).tolist() <= [6, 5]
    assert len({tuple(shift) for shift in shifts.tolist()}) > 10
    found = levels(affine(images(), IDS, 0))
    for picture, (right, down), image in zip(PICTURES, shifts.astype(int), found, strict=True):
        padded = np.pad(np.asarray(picture, dtype=np.float32), ((5, 5), (6, 6), (0, 0)))
        expected = padded[5 - down : 26 - down, 6 - right : 30 - right]
        assert np.abs(image - expected).max() < 0.01


def test_both_turn_first_and_then_move() -> None:
    """About the middle of the image, which the translation then moves."""
    both = moving(20.0, 0.2).matrices(IDS, 0, (21, 24))
    shifts = -moving(0.0, 0.2).matrices(IDS, 0, (21, 24))[:, :, 2]
    centre = np.array([12.0, 10.5])
    moved = np.einsum("nij,nj->ni", both[:, :, :2], centre + shifts) + both[:, :, 2]
    assert np.allclose(moved, centre)


def test_movement_depends_on_seed_epoch_and_sample_only() -> None:
    affine, given = moving(10.0, 0.1), images()
    whole = affine(given, IDS, 3)
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(affine(given[5:9], IDS[5:9], 3), whole[5:9])
    others = affine(given, IDS, 4), affine(given, IDS + 1, 3), moving(10.0, 0.1, 2)(given, IDS, 3)
    assert not any(torch.equal(other, whole) for other in others)
    assert moving()(given, IDS, 3) is given


@pytest.mark.parametrize("jitter", [[0.0] * 4, [0.4, 0.4, 0.4, 0.1]])
def test_what_comes_in_from_outside_stays_black(jitter: list[float]) -> None:
    """Colours change before the image moves, so that the fill is no part of its mean grey."""
    data = Data.model_validate({"rotation": 45.0, "color_jitter": jitter, **LEVELS})
    found = levels(Changes(data, 1)(images(), IDS, 0))
    angles = np.abs(moving(45.0).matrices(IDS, 0, (21, 24))[:, 0, 1])
    corners = found[angles > 0.2][:, 0, 0]
    assert len(corners) > 5
    assert np.abs(corners).max() < 1e-3
