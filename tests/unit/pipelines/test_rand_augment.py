"""RandAugment's operations equal PIL's, and its choices do not depend on earlier ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from pydantic import ValidationError

from hvdtrain.config.data import Data
from pipelines.images import rand_augment
from pipelines.images.rand_augment import OPERATIONS, RandAugment
from tests.unit.pipelines.samples import Epoch, photograph

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
COUNT = 400
IDS = np.arange(1000, 1000 + COUNT)
PICTURES = [photograph(k % 7, 20, 24) for k in range(COUNT)]


def normalised(levels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (levels / 255 - mean) / std


def raw(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (images * std + mean) * 255


def stack(pictures: list[Image.Image]) -> torch.Tensor:
    arrays = [np.asarray(p, dtype=np.float32) for p in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def blend(kind: Callable[..., ImageEnhance._Enhance]) -> Callable[..., Image.Image]:
    return lambda p, m, sign: kind(p).enhance(1 + 0.9 * m / 30 * sign)


def affine(p: Image.Image, *values: float) -> Image.Image:
    return p.transform(p.size, Image.Transform.AFFINE, values, Image.Resampling.NEAREST)


PIL: dict[str, Callable[..., Image.Image]] = {
    "identity": lambda p, m, sign: p,
    "shear_x": lambda p, m, sign: affine(p, 1, -0.3 * m / 30 * sign, 0, 0, 1, 0),
    "shear_y": lambda p, m, sign: affine(p, 1, 0, 0, -0.3 * m / 30 * sign, 1, 0),
    "translate_x": lambda p, m, sign: affine(
        p, 1, 0, -int(150 / 331 * p.width * m / 30 * sign), 0, 1, 0
    ),
    "translate_y": lambda p, m, sign: affine(
        p, 1, 0, 0, 0, 1, -int(150 / 331 * p.height * m / 30 * sign)
    ),
    # PIL turns counterclockwise about the middle.
    "rotate": lambda p, m, sign: p.rotate(-m * sign, Image.Resampling.NEAREST),
    "brightness": blend(ImageEnhance.Brightness),
    "saturation": blend(ImageEnhance.Color),
    "contrast": blend(ImageEnhance.Contrast),
    "sharpness": blend(ImageEnhance.Sharpness),
    "posterize": lambda p, m, sign: ImageOps.posterize(p, 8 - round(m / 7.5)),
    "solarize": lambda p, m, sign: ImageOps.solarize(p, 255 - 255 * m / 30),
    "autocontrast": lambda p, m, sign: ImageOps.autocontrast(p),
    "equalize": lambda p, m, sign: ImageOps.equalize(p),
}


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal within one level, except a pixel in fifty, where rounding decides which is nearest."""
    return float(((found - expected).abs() > 1.01).float().mean()) <= 0.02


@pytest.mark.parametrize("magnitude", [0, 7, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_pils(name: str, magnitude: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rand_augment, "OPERATIONS", (name,))
    for group in ("GEOMETRIC", "BLENDS", "POINTWISE"):
        kept = tuple(n for n in getattr(rand_augment, group) if n == name)
        monkeypatch.setattr(rand_augment, group, kept)
    some = PICTURES[:14]
    augment = RandAugment([1, magnitude], MEAN, STD, seed=3)
    found = raw(augment(normalised(stack(some)), IDS[:14], epoch=1))
    for k, picture in enumerate(some):
        either = [PIL[name](picture, magnitude, sign) for sign in (-1, 1)]
        assert any(close(found[k], one) for one in stack(either)), (name, k)
    if name in ("rotate", "brightness") and magnitude:  # both signs come
        first = stack([PIL[name](picture, magnitude, 1) for picture in some])
        same = [close(f, e) for f, e in zip(found, first, strict=True)]
        assert 0 < sum(same) < len(same)


def test_every_operation_comes_about_equally_often() -> None:
    images = normalised(stack(PICTURES))
    seen = []
    for ids in (IDS, IDS + COUNT):
        draws = rand_augment.uniforms(ids, 4, rand_augment._RAND, 3, 1)
        seen.append((draws[:, 0::2] * len(OPERATIONS)).astype(int))
        assert not torch.equal(RandAugment([2, 9], MEAN, STD, 3)(images, ids, 1), images)
    counts = np.bincount(np.concatenate(seen).ravel(), minlength=len(OPERATIONS))
    assert counts.min() > 70  # of 114 expected
    assert counts.max() < 165


def test_choices_depend_on_seed_epoch_and_sample_only() -> None:
    images = normalised(stack(PICTURES[:40]))
    augment = RandAugment([2, 9], MEAN, STD, seed=3)
    whole = augment(images, IDS[:40], epoch=1)
    order = np.random.default_rng(0).permutation(40)
    parts = [augment(images[part], IDS[part], epoch=1) for part in np.split(order, [7, 19])]
    assert torch.equal(torch.cat(parts), whole[order])
    for other in (
        augment(images, IDS[:40], epoch=2),
        augment(images, IDS[:40] + 1, epoch=1),
        RandAugment([2, 9], MEAN, STD, seed=4)(images, IDS[:40], epoch=1),
    ):
        assert not torch.allclose(other, whole)


def test_off_by_default_and_strength_is_checked() -> None:
    images = normalised(stack(PICTURES[:3]))
    assert RandAugment(Data().rand_augment, MEAN, STD, 0)(images, IDS[:3], 0) is images
    for wrong in ([0, 9], [2, 31], [2, -1], [2]):
        with pytest.raises(ValidationError, match="rand_augment"):
            Data(rand_augment=wrong)


def test_only_training_images_change(make_loaders, folder) -> None:
    plain, changed = make_loaders(folder, folder), make_loaders(folder, folder, rand_augment=[2, 9])
    for kind, equal in (("train", False), ("val", True)):
        passes = [
            [b[1] if kind == "train" else b for b in getattr(loaders, kind)(Epoch())]
            for loaders in (plain, changed)
        ]
        pairs = zip(*passes, strict=True)
        assert all(torch.equal(one.images, other.images) for one, other in pairs) is equal
