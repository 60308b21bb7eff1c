"""Loaders end to end on real files: exact pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pipelines.images import augment
from pipelines.sources import ImageFolder
from tests.unit.pipelines.loaded import pixels, rank_pixels
from tests.unit.pipelines.samples import COUNT, Epoch, photograph

LEVELS = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255, 1 / 255, 1 / 255]}  # images in 0..255


def reference_crop(
    picture: Image.Image,
    kind: str,
    i: int,
    size: int,
    filter_: Image.Resampling,
    aspect: tuple[float, float],
) -> np.ndarray:
    """The training image of sample `i` made by PIL and NumPy."""
    draws = augment.draw(np.array([i]), seed=5, epoch=0)
    dims = np.array([[picture.height, picture.width]])
    top, left, height, width = augment.whole(dims)[0].tolist()
    if kind == "random_resized_crop":
        crops = augment.random_resized_crop(dims, draws, min_area=0.08, aspect=aspect)
        top, left, height, width = crops[0].tolist()
    window = picture.crop((left, top, left + width, top + height))
    image = np.asarray(window.resize((size, size), filter_), dtype=np.float32)
    if kind == "pad_crop":
        pad, ((y, x),) = augment.pad_offsets(draws, size)
        image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        image = image[y : y + size, x : x + size]
    return image[:, ::-1] if draws.flip[0] < 0.5 else image


@pytest.mark.parametrize("filter_", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("aspect", [(0.75, 4 / 3), (1.5, 1.5)])
@pytest.mark.parametrize("kind", ["random_resized_crop", "pad_crop", "none"])
def test_training_images_equal_pils(make_loaders, folder, kind, aspect, filter_):
    """Within 1.5 levels of 255 on average and 4 at most inside; DALI repeats the outermost
    pixels where PIL's filter leaves them out, so the border may differ more."""
    source = ImageFolder(str(folder), "data.train")
    loaders = make_loaders(folder, augment=kind, **LEVELS)
    own = None if aspect[0] < 1 else list(aspect)  # None: the aspect of the dataset
    epoch = Epoch(image_size=32, crop_aspect=own, interpolation=filter_.name.lower())
    for i, image in pixels(b for _i, b in loaders.train(epoch)).items():
        picture = Image.open(source.name(i))
        reference = reference_crop(picture, kind, i, 32, filter_, aspect)
        error = np.abs(image.permute(1, 2, 0).numpy() - reference)
        assert error.mean() < 1.5
        if kind != "pad_crop":  # padding copies the border inside
            assert error[1:-1, 1:-1].max() <= 4


@pytest.mark.parametrize("filter_", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("ratio", [0.875, 1.0])
def test_evaluation_images_equal_pils(make_loaders, folder, ratio, filter_):
    """Within 1.01 levels of 255, borders included where the filter finds pixels to read."""
    source = ImageFolder(str(folder), "data.val")
    loaders = make_loaders(None, folder, val_crop_ratio=ratio, **LEVELS)
    epoch = Epoch(val_image_size=32, interpolation=filter_.name.lower())
    for i, image in pixels(loaders.val(epoch)).items():
        picture = Image.open(source.name(i))
        short = round(32 / ratio)
        scale = min(picture.size)
        width, height = (int(short * side / scale) for side in picture.size)
        left, top = round((width - 32) / 2), round((height - 32) / 2)
        resized = picture.resize((width, height), filter_)
        reference = np.asarray(resized.crop((left, top, left + 32, top + 32)), dtype=np.float32)
        error = np.abs(image.permute(1, 2, 0).numpy() - reference)
        assert error[1:-1, 1:-1].max() <= 1.01
        assert ratio == 1.0 or error.max() <= 1.01


def test_stretched_evaluation_images_equal_pils(make_loaders, folder):
    """The whole image to a square of 36 px, of which the middle 32 are left."""
    source = ImageFolder(str(folder), "data.val")
    loaders = make_loaders(None, folder, val_crop_ratio=32 / 36, val_resize="stretch", **LEVELS)
    for i, image in pixels(loaders.val(Epoch(val_image_size=32))).items():
        picture = Image.open(source.name(i))
        resized = picture.resize((36, 36), Image.Resampling.BILINEAR)
        reference = np.asarray(resized.crop((2, 2, 34, 34)), dtype=np.float32)
        assert np.abs(image.permute(1, 2, 0).numpy() - reference).max() <= 1.01


def test_exif_orientation_is_applied(make_loaders, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    photograph(1, 60, 90).save(tmp_path / "a" / "1.jpg", exif=exif, quality=95)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "a" / "1.jpg"))
    loaders = make_loaders(tmp_path, augment="none", flip=False, **LEVELS)
    epoch = Epoch(num_train=1, image_size=32, batch_per_worker=1)
    ((_i, batch),) = loaders.train(epoch)
    reference = np.asarray(upright.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32)
    assert np.abs(batch.images[0].permute(1, 2, 0).numpy() - reference).mean() < 1.5


def test_flip_off_mirrors_nothing(make_loaders, folder):
    flipped = rank_pixels(make_loaders, folder, Epoch(), augment="none")
    straight = rank_pixels(make_loaders, folder, Epoch(), augment="none", flip=False)
    mirrored = [i for i in straight if not torch.equal(flipped[i], straight[i])]
    assert 0 < len(mirrored) < COUNT
    assert all(torch.equal(flipped[i], straight[i].flip(2)) for i in mirrored)


def test_normalisation_is_per_channel(make_loaders, folder):
    plain = rank_pixels(make_loaders, folder, Epoch(), **LEVELS)
    scaled = rank_pixels(make_loaders, folder, Epoch(), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    for i in plain:
        torch.testing.assert_close(scaled[i], (plain[i] / 255 - mean) / std, atol=1e-5, rtol=0)
