"""RandAugment's operations equal PIL's, and its choices do not depend on earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from pydantic import ValidationError

from hvdtrain.config.data import Data
from pipelines.images import rand_augment
from pipelines.images.policies import POLICIES
from pipelines.images.rand_augment import RandAugment
from tests.unit.pipelines.samples import Epoch, photograph

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
COUNT = 400
IDS = np.arange(1000, 1000 + COUNT)
PICTURES = [photograph(k % 7, 20, 24) for k in range(COUNT)]
OPERATIONS = POLICIES["standard"].operations


def augmenting(setting: list[int], seed: int = 3, policy: str = "standard") -> RandAugment:
    data = {"rand_augment": setting, "rand_augment_policy": policy, "mean": MEAN, "std": STD}
    return RandAugment(Data.model_validate(data), seed)


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


def close(found: torch.Tensor, expected: torch.Tensor, others: float = 0.02) -> bool:
    """Equal within one level, except a pixel in fifty, where rounding decides which is nearest."""
    return float(((found - expected).abs() > 1.01).float().mean()) <= others


def only(name: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave one operation to the policy."""
    monkeypatch.setitem(POLICIES, policy, replace(POLICIES[policy], operations=(name,)))


@pytest.mark.parametrize("magnitude", [0, 7, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_pils(name: str, magnitude: int, monkeypatch: pytest.MonkeyPatch) -> None:
    only(name, "standard", monkeypatch)
    some = PICTURES[:14]
    augment = augmenting([1, magnitude])
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
        assert not torch.equal(augmenting([2, 9])(images, ids, 1), images)
    counts = np.bincount(np.concatenate(seen).ravel(), minlength=len(OPERATIONS))
    assert counts.min() > 70  # of 114 expected
    assert counts.max() < 165


def test_choices_depend_on_seed_epoch_and_sample_only() -> None:
    images = normalised(stack(PICTURES[:40]))
    augment = augmenting([2, 9])
    whole = augment(images, IDS[:40], epoch=1)
    order = np.random.default_rng(0).permutation(40)
    parts = [augment(images[part], IDS[part], epoch=1) for part in np.split(order, [7, 19])]
    assert torch.equal(torch.cat(parts), whole[order])
    for other in (
        augment(images, IDS[:40], epoch=2),
        augment(images, IDS[:40] + 1, epoch=1),
        augmenting([2, 9], seed=4)(images, IDS[:40], epoch=1),
    ):
        assert not torch.allclose(other, whole)


def test_off_by_default_and_strength_is_checked() -> None:
    images = normalised(stack(PICTURES[:3]))
    assert RandAugment(Data(), 0)(images, IDS[:3], 0) is images
    for wrong in ([0, 9], [2, 31], [2, -1], [2]):
        with pytest.raises(ValidationError, match="rand_augment"):
            Data(rand_augment=wrong)


GREY = (128, 128, 128)


def warped(p: Image.Image, *values: float) -> Image.Image:
    return p.transform(
        p.size, Image.Transform.AFFINE, values, Image.Resampling.NEAREST, fillcolor=GREY
    )


def levelled(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Image.Image]:
    """An operation on the levels, as int64."""

    def apply(p: Image.Image, *_: object) -> Image.Image:
        return Image.fromarray(np.clip(change(np.asarray(p, np.int64)), 0, 255).astype(np.uint8))

    return apply


def source_blend(base: Callable[[Image.Image], Image.Image], m: int) -> Callable[..., Image.Image]:
    return lambda p, *_: Image.blend(base(p), p, m / 10 * 1.8 + 0.1)


def cutout(p: Image.Image, m: int, place: np.ndarray) -> Image.Image:
    pixels, reach = np.array(p), int(m / 10 * 40)
    y, x = (int(at * side) for at, side in zip(place, pixels.shape, strict=False))
    pixels[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach] = 128
    return Image.fromarray(pixels)


def nfnet(m: int) -> dict[str, Callable[[Image.Image, float, np.ndarray], Image.Image]]:
    """Operations of deepmind-research, nfnets/autoaugment.py, at magnitude `m`, by PIL and NumPy:
    (picture, sign, place of a cutout) -> picture."""
    bits, add, threshold = int(m / 10 * 4), int(m / 10 * 110), int(m / 10 * 256)
    shift = min(7, 8 - bits)
    s, t, degrees = m / 10 * 0.3, m / 10 * 100, m / 10 * 30
    smooth = ImageFilter.Kernel((3, 3), (1, 1, 1, 1, 5, 1, 1, 1, 1), 13)
    return {
        "autocontrast": lambda p, *_: ImageOps.autocontrast(p),
        "equalize": lambda p, *_: ImageOps.equalize(p),
        "invert": lambda p, *_: ImageOps.invert(p),
        "rotate": lambda p, sign, _: p.rotate(
            -degrees * sign, Image.Resampling.NEAREST, fillcolor=GREY
        ),
        "posterize": levelled(lambda x: x >> shift << shift),
        "solarize": levelled(lambda x: np.where(x < threshold, x, 255 - x)),
        "solarize_add": levelled(lambda x: np.where(x < 128, np.clip(x + add, 0, 255), x)),
        "saturation": source_blend(lambda p: p.convert("L").convert("RGB"), m),
        "brightness": source_blend(lambda p: Image.new("RGB", p.size), m),
        "sharpness": source_blend(lambda p: p.filter(smooth), m),
        # The number of pixels divided by 256, where the mean grey is meant.
        "contrast": source_blend(
            lambda p: Image.new("RGB", p.size, (p.width * p.height // 256,) * 3), m
        ),
        # (x, y) -> round(x + s y, y); PIL counts from the corners of pixels.
        "shear_x": lambda p, sign, _: warped(p, 1, s * sign, -s * sign / 2, 0, 1, 0),
        "shear_y": lambda p, sign, _: warped(p, 1, 0, 0, s * sign, 1, -s * sign / 2),
        "translate_x": lambda p, sign, _: warped(p, 1, 0, -t * sign, 0, 1, 0),
        "translate_y": lambda p, sign, _: warped(p, 1, 0, 0, 0, 1, -t * sign),
        "cutout": lambda p, _, place: cutout(p, m, place),
    }


@pytest.mark.parametrize("magnitude", [1, 5, 15])
def test_operations_of_nfnets_equal_their_source(
    magnitude: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, some, policy = nfnet(magnitude), PICTURES[:14], POLICIES["nfnet"]
    assert {*policy.operations} == {*reference}
    assert len(policy.operations) == 16
    draws = rand_augment.uniforms(IDS[:14], 4, rand_augment._RAND, 3, 1)
    for name in policy.operations:
        only(name, "nfnet", monkeypatch)
        found = raw(
            augmenting([1, magnitude], policy="nfnet")(normalised(stack(some)), IDS[:14], 1)
        )
        monkeypatch.setitem(POLICIES, "nfnet", policy)
        signs = np.where(draws[:, 1] < 0.5, -1, 1)
        assert {*signs.tolist()} == {-1, 1}
        expected = [
            reference[name](picture, sign, place)
            for picture, sign, place in zip(some, signs, draws[:, 2:], strict=True)
        ]
        halfway = 0.05 if name.startswith("shear") else 0.02  # a row moves by half a pixel
        for k, one in enumerate(stack(expected)):
            assert close(found[k], one, halfway), (name, k)


def test_the_magnitude_of_nfnets_has_its_own_range() -> None:
    Data(rand_augment=[4, 20], rand_augment_policy="nfnet")
    for wrong, line in (([4, 21], r"magnitude 0-20\] for policy nfnet"), (None, "needs rand_aug")):
        with pytest.raises(ValidationError, match=line):
            Data(rand_augment=wrong, rand_augment_policy="nfnet")


def test_only_training_images_change(make_loaders, folder) -> None:
    plain, changed = make_loaders(folder, folder), make_loaders(folder, folder, rand_augment=[2, 9])
    for kind, equal in (("train", False), ("val", True)):
        passes = [
            [b[1] if kind == "train" else b for b in getattr(loaders, kind)(Epoch())]
            for loaders in (plain, changed)
        ]
        pairs = zip(*passes, strict=True)
        assert all(torch.equal(one.images, other.images) for one, other in pairs) is equal
