"""Passes that are left early end cleanly, and the next pass has none of their batches."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import psutil
import pytest

from tests.unit.pipelines.loaded import own_threads, pixels
from tests.unit.pipelines.samples import COUNT, Epoch


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
