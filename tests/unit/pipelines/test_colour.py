"""Colour jitter equals its definition step by step, and does not depend on earlier draws."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from pipelines.hashing import uniforms
from pipelines.images.colour import ColourJitter
from tests.unit.pipelines.samples import Epoch, photograph

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
IDS = np.arange(40, 46)


def pictures(low: float = 0.3, high: float = 0.6) -> torch.Tensor:
    """[6, 3, 20, 24] in `low` to `high`, far enough from the ends not to be clipped."""
    stack = [np.asarray(photograph(k, 20, 24), dtype=np.float32) / 255 for k in range(6)]
    images = torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2)
    return low + (high - low) * images


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def raw(images: torch.Tensor) -> torch.Tensor:
    return images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def jittered(strengths: list[float], images: torch.Tensor, epoch: int = 0) -> torch.Tensor:
    jitter = ColourJitter(strengths, MEAN, STD, seed=1)
    return raw(jitter(normalised(images), IDS, epoch))


def factors(strengths: list[float]) -> torch.Tensor:
    draws = 2 * uniforms(IDS, 4, 4, 1, 0) - 1
    return torch.from_numpy(1 + draws * strengths).float()[:, :, None, None, None]


def grey(images: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def test_each_change_is_what_it_says():
    images = pictures()
    for place in range(3):
        strengths = [0.0] * 4
        strengths[place] = 0.3
        f = factors(strengths)[:, place]
        expected = {
            0: images * f,
            1: grey(images).mean((1, 2, 3), keepdim=True) * (1 - f) + images * f,
            2: grey(images) * (1 - f) + images * f,
        }[place]
        assert torch.allclose(jittered(strengths, images), expected, atol=1e-5)


def test_all_together_are_applied_in_order():
    images, strengths = pictures(), [0.2, 0.2, 0.2, 0.0]
    b, c, s, _hue = factors(strengths).unbind(1)
    expected = images * b
    expected = grey(expected).mean((1, 2, 3), keepdim=True) * (1 - c) + expected * c
    expected = grey(expected) * (1 - s) + expected * s
    assert torch.allclose(jittered(strengths, images), expected, atol=1e-5)


def test_hue_turns_the_colour_and_keeps_the_luma():
    images = pictures(0.45, 0.55)
    turned = jittered([0.0, 0.0, 0.0, 0.5], images)
    assert torch.allclose(grey(turned), grey(images), atol=1e-4)
    shift = factors([0.0, 0.0, 0.0, 0.5])[:, 3].flatten() - 1
    for image, result, turns in zip(images, turned, shift.tolist(), strict=True):
        before = colorsys.rgb_to_hsv(*image[:, 3, 5].tolist())[0]
        after = colorsys.rgb_to_hsv(*result[:, 3, 5].tolist())[0]
        change = abs((after - before + 0.5) % 1 - 0.5)
        assert change == pytest.approx(abs(turns), abs=0.12)


def test_nothing_leaves_the_range_of_pixels():
    changed = jittered([1.0, 1.0, 1.0, 0.5], pictures(0.0, 1.0))
    assert float(changed.min()) >= -1e-6
    assert float(changed.max()) <= 1 + 1e-6


def test_colours_depend_on_epoch_and_sample_only():
    images, strengths = pictures(), [0.4, 0.4, 0.4, 0.1]
    jitter = ColourJitter(strengths, MEAN, STD, seed=1)
    whole = jitter(images, IDS, 3)
    for k in range(6):
        assert torch.equal(jitter(images[k : k + 1], IDS[k : k + 1], 3), whole[k : k + 1])
    assert not torch.allclose(jitter(images, IDS, 4), whole)
    assert jitter(images.contiguous(memory_format=torch.channels_last), IDS, 3).is_contiguous(
        memory_format=torch.channels_last
    )


def test_loaders_change_training_images_only(make_loaders, folder):
    plain, changed = (
        make_loaders(folder, folder, color_jitter=strengths)
        for strengths in ([0.0] * 4, [0.4, 0.4, 0.4, 0.1])
    )
    (_i, one), (_j, other) = next(plain.train(Epoch())), next(changed.train(Epoch()))
    assert np.array_equal(one.indices, other.indices)
    assert not torch.allclose(one.images, other.images, atol=0.05)
    assert torch.equal(next(plain.val(Epoch())).images, next(changed.val(Epoch())).images)
