"""Loaders end to end on real files: every image once, and the same at any number of ranks."""

from __future__ import annotations

import pytest
import torch

from pipelines.sources import ImageFolder
from tests.unit.pipelines.loaded import pixels, rank_pixels, same
from tests.unit.pipelines.samples import CLASSES, COUNT, Epoch


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
