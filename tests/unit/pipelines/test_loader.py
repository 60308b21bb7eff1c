"""Loaders end to end on real files: exact counts, exact pixels, and clean endings."""

from __future__ import annotations

import random
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageOps

from hvdtrain.errors import DataError
from pipelines import augment
from pipelines.sources import ImageFolder
from tests.unit.pipelines.samples import CLASSES, PER_CLASS, Epoch, photograph

COUNT = len(CLASSES) * PER_CLASS
LEVELS = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255, 1 / 255, 1 / 255]}  # images in 0..255


def own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("hvdtrain")]


def pixels(batches) -> dict[int, torch.Tensor]:
    """Images by sample id, of samples with weight."""
    return {
        int(i): image.clone()
        for batch in batches
        for i, image, weight in zip(batch.indices, batch.images, batch.weights, strict=True)
        if weight
    }


def rank_pixels(make_loaders, folder, epoch: Epoch, steps: slice = slice(None), **data):
    """Images by sample id, of all ranks of `epoch.world_size`; each may come once only."""
    union: dict[int, torch.Tensor] = {}
    for rank in range(epoch.world_size):
        with make_loaders(folder, rank=rank, size=epoch.world_size, **data) as loaders:
            batches = [batch for _i, batch in loaders.train(epoch)][steps]
        mine = pixels(batches)
        assert not union.keys() & mine.keys()
        union |= mine
    return union


def same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


def test_batches_have_the_promised_form(make_loaders, folder):
    loaders = make_loaders(folder, folder)
    assert (loaders.num_train, loaders.num_val, loaders.classes) == (COUNT, COUNT, list(CLASSES))
    epoch = Epoch(batch_per_worker=2, accumulate=2)
    seen = list(loaders.train(epoch))
    assert [i for i, _batch in seen] == list(range(epoch.steps))
    labels = ImageFolder(str(folder), "data.train").labels
    for _i, batch in seen:
        assert batch.images.shape == (4, 3, 24, 24)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == torch.int64
        assert batch.weights.dtype == torch.float32
        assert batch.labels.tolist() == labels[batch.indices].tolist()
    files = sum(file.stat().st_size for file in folder.rglob("*.JPEG"))
    assert loaders.bytes_read > files  # all of them, and the padding of the last batch
    assert loaders.data_wait_s > 0


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 4, 50])
def test_evaluation_sees_every_image_once_in_equal_batches(make_loaders, folder, world_size, batch):
    epoch = Epoch(batch_per_worker=batch)
    counts = []
    seen: list[int] = []
    for rank in range(world_size):
        batches = list(make_loaders(folder, folder, rank=rank, size=world_size).val(epoch))
        counts.append([len(b.images) for b in batches])
        seen += pixels(batches)
    assert sorted(seen) == list(range(COUNT))
    assert all(c == counts[0] for c in counts)
    assert max(counts[0]) <= batch
    assert sum(counts[0]) * world_size < COUNT + world_size * len(counts[0])


@pytest.mark.parametrize("kind", ["random_resized_crop", "pad_crop", "none"])
def test_a_resumed_epoch_has_identical_pixels_at_another_world_size(make_loaders, folder, kind):
    whole = rank_pixels(make_loaders, folder, Epoch(index=3), augment=kind)
    assert len(whole) == COUNT
    before = rank_pixels(make_loaders, folder, Epoch(index=3, world_size=2), slice(2), augment=kind)
    after = Epoch(index=3, world_size=3, batch_per_worker=2, start=len(before))
    rest = rank_pixels(make_loaders, folder, after, augment=kind)
    assert len(before) == 16
    assert len(rest) == COUNT - 16
    assert same(before | rest, whole)


def test_other_epochs_have_other_pixels(make_loaders, folder):
    one = rank_pixels(make_loaders, folder, Epoch(index=0))
    other = rank_pixels(make_loaders, folder, Epoch(index=1))
    assert not any(torch.equal(one[i], other[i]) for i in one)


def test_size_and_batch_change_without_stale_batches(make_loaders, folder):
    loaders = make_loaders(folder, folder, prefetch=4)
    epochs = [
        Epoch(index=k, image_size=size, val_image_size=size + 8, batch_per_worker=batch)
        for k, (size, batch) in enumerate([(16, 5), (40, 2), (24, 21), (16, 1), (16, 3)])
    ]
    for epoch, then in zip(epochs, [*epochs[1:], None], strict=True):
        seen = [batch for _i, batch in loaders.train(epoch, then)]
        assert {b.images.shape[2:] for b in seen} == {(epoch.image_size,) * 2}
        assert {len(b.images) for b in seen} == {epoch.batch_per_worker}
        assert same(pixels(seen), rank_pixels(make_loaders, folder, epoch))
        val = list(loaders.val(epoch))
        assert {b.images.shape[2:] for b in val} == {(epoch.val_image_size,) * 2}
        assert len(pixels(val)) == COUNT


def test_images_stay_as_they_are_while_later_batches_are_made(make_loaders, folder):
    held = []
    for _i, batch in make_loaders(folder).train(Epoch(batch_per_worker=1)):
        held.append((batch.images, batch.images.clone()))
    assert all(torch.equal(image, copy) for image, copy in held)


def reference_crop(
    picture: Image.Image,
    kind: str,
    i: int,
    size: int,
    filter_: Image.Resampling,
    aspect: tuple[float, float],
) -> np.ndarray:
    """The training image of sample `i` made with PIL and NumPy alone."""
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
    own = None if aspect[0] < 1 else list(aspect)  # None: that of the dataset
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


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_leaving_an_epoch_early_leaves_no_thread(make_loaders, folder, taken):
    loaders = make_loaders(folder, folder)
    epoch = Epoch(batch_per_worker=1)
    batches = loaders.train(epoch, then=replace(epoch, index=1))
    for _ in range(taken):
        next(batches)
    loaders.close()
    assert own_threads() == []


def test_a_new_pass_replaces_an_abandoned_one(make_loaders, folder):
    loaders = make_loaders(folder)
    epoch = Epoch(batch_per_worker=1)
    for _i, _batch in loaders.train(epoch):
        break
    assert len(pixels(b for _i, b in loaders.train(replace(epoch, index=1)))) == COUNT
    abandoned = loaders.train(epoch)
    next(abandoned)
    assert len(pixels(b for _i, b in loaders.train(epoch))) == COUNT


@pytest.mark.parametrize("seed", range(8))
def test_passes_abandoned_and_prepared_at_random_never_mix(make_loaders, folder, seed):
    rng = random.Random(seed)
    loaders = make_loaders(folder, folder)
    sizes, batches, stops = (16, 24, 32), (1, 3, 8), (0, 1, 4, 99)
    for _ in range(8):
        epoch, then = (
            Epoch(
                index=rng.randint(0, 2),
                image_size=rng.choice(sizes),
                val_image_size=rng.choice(sizes),
                batch_per_worker=rng.choice(batches),
            )
            for _ in range(2)
        )
        passes = [loaders.train(epoch, rng.choice([None, then]))]
        passes += [enumerate(loaders.val(epoch))] * rng.randint(0, 1)
        expected = [(epoch.image_size, epoch.batch_per_worker), (epoch.val_image_size, None)]
        for batches_of, (size, count) in zip(passes, expected, strict=False):
            stop = rng.choice(stops)
            for i, batch in batches_of:
                assert batch.images.shape[1:] == (3, size, size)
                assert count in (None, len(batch.images))
                if i == stop:
                    break
    loaders.close()
    assert own_threads() == []


def test_an_evaluation_does_not_wait_for_a_training_pass_that_stands_still(make_loaders, folder):
    loaders = make_loaders(folder, folder, prefetch=1)
    epoch = Epoch(batch_per_worker=1)
    halted = loaders.train(epoch, then=replace(epoch, index=1))
    next(halted)
    assert len(pixels(loaders.val(epoch))) == COUNT


def test_decoding_threads_end_with_the_loaders(make_loaders, folder):
    process = psutil.Process()
    list(make_loaders(folder, folder).train(Epoch()))  # loads what DALI loads once
    before = process.num_threads()
    for _ in range(3):
        with make_loaders(folder, folder) as loaders:
            list(loaders.train(Epoch()))
            list(loaders.val(Epoch()))
    deadline = time.monotonic() + 20  # a thread that was joined may still be leaving the kernel
    while process.num_threads() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.num_threads() <= before


def test_an_error_in_the_training_loop_does_not_hang(make_loaders, folder):
    def train() -> None:
        with make_loaders(folder) as loaders:
            for _i, _batch in loaders.train(Epoch(batch_per_worker=1)):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert own_threads() == []


def damaged(folder: Path, root: Path, damage) -> Path:
    """A copy of `folder` with its file bee/3.JPEG damaged; returns that file."""
    shutil.copytree(folder, root)
    bad = root / "bee" / "3.JPEG"
    data = bad.read_bytes()
    bad.write_bytes(damage(data))
    return bad


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"this is text",
        lambda data: data[: len(data) // 3],
        lambda data: data[:2] + bytes(40) + data[42:],
    ],
    ids=["empty", "text", "truncated", "header"],
)
def test_a_bad_file_is_named_in_one_line(make_loaders, folder, tmp_path, damage):
    bad = damaged(folder, tmp_path / "images", damage)
    loaders = make_loaders(tmp_path / "images", folder, augment="none")
    with pytest.raises(DataError) as error:
        list(loaders.train(Epoch()))
    assert str(error.value).startswith(f"{bad}: ")
    assert "\n" not in str(error.value)
    assert len(pixels(loaders.val(Epoch()))) == COUNT  # the loaders can go on


def test_a_file_deleted_after_listing_is_named(make_loaders, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    loaders = make_loaders(tmp_path / "images")
    (tmp_path / "images" / "ant" / "2.JPEG").unlink()
    with pytest.raises(DataError, match=r"ant/2\.JPEG: cannot read: No such file"):
        list(loaders.train(Epoch()))
    loaders.close()
    assert own_threads() == []


def test_a_plan_for_another_number_of_images_is_refused(make_loaders, folder):
    with pytest.raises(DataError, match="21 images make 6 steps in epoch 0, the plan has 8"):
        make_loaders(folder).train(Epoch(num_train=30))


def test_a_missing_dataset_is_named(make_loaders, folder):
    with pytest.raises(DataError, match=r"data\.train: not set"):
        make_loaders(None)
    with pytest.raises(DataError, match=r"data\.val: not set"):
        make_loaders(folder).val(Epoch())
    assert make_loaders(None, folder).num_train == 0


def test_ranks_that_list_other_files_have_another_fingerprint(make_loaders, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    assert make_loaders(folder).fingerprint == make_loaders(tmp_path / "images").fingerprint
    (tmp_path / "images" / "ant" / "2.JPEG").unlink()
    assert make_loaders(folder).fingerprint != make_loaders(tmp_path / "images").fingerprint


def test_an_order_that_keeps_classes_together_is_warned_of(make_loaders, tmp_path):
    for label in range(8):
        folder = tmp_path / f"c{label}"
        folder.mkdir()
        for k in range(128):  # never decoded
            (folder / f"{k}.jpg").write_bytes(b"")
    assert make_loaders(tmp_path).order_warning() is None
    wide = make_loaders(tmp_path, shuffle="shards", shuffle_window=100_000)
    assert wide.order_warning() is None
    text = make_loaders(tmp_path, shuffle="shards", shuffle_window=1).order_warning()
    assert "256 images in a row have 2 classes on average, 8 with shuffle full" in text
