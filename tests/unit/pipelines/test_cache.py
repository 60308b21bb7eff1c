"""The cache gives what decoding gives, is shared by the ranks of a node, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hvdtrain.config.data import Data
from hvdtrain.errors import DataError
from pipelines.loader import Loaders
from tests import bad_files
from tests.launch import REPOSITORY
from tests.unit.pipelines.samples import Epoch, photograph

LEVELS = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255, 1 / 255, 1 / 255]}  # images in 0..255
COUNT = 23


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Two classes of photographs of 32 x 32 pixels."""
    root = tmp_path_factory.mktemp("small")
    for k in range(COUNT):
        folder = root / ("cat" if k < 9 else "dog")
        folder.mkdir(exist_ok=True)
        photograph(k, 32, 32).save(folder / f"{k}.png")
    return root


def filled(loaders: list[Loaders]) -> list[Loaders]:
    """The ranks of one node with their caches filled."""
    offers = [rank.offer() for rank in loaders]
    for rank in loaders:
        rank.accept(offers)
    return loaders


def node(make, folder: Path, size: int = 1, **data) -> list[Loaders]:
    config = {"augment": "pad_crop", "cache": "ram", **data}
    return filled(
        [
            make(folder, folder, rank=rank, size=size, local=(rank, size), **config)
            for rank in range(size)
        ]
    )


@pytest.fixture
def make(request):
    """Like `make_loaders`, with a local rank and size."""
    made: list[Loaders] = []

    def build(train, val, *, rank, size, local, **data) -> Loaders:
        config = Data.model_validate(
            {"train": str(train), "val": str(val), "decode_threads": 1, **data}
        )
        made.append(
            Loaders(
                config,
                seed=5,
                rank=rank,
                world_size=size,
                local_rank=local[0],
                local_size=local[1],
                device=torch.device("cpu"),
            )
        )
        return made[-1]

    yield build
    for loaders in made:
        loaders.close()


def same_batches(one, other, tolerance: float) -> int:
    """Number of batches, all equal except the images, which differ by `tolerance` at most."""
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.indices, b.indices)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.weights, b.weights)
        assert a.images.shape == b.images.shape
        assert a.images.is_contiguous(memory_format=torch.channels_last)
        assert float((a.images - b.images).abs().max()) <= tolerance
    return len(one)


def train(loaders: Loaders, epoch: Epoch):
    return [batch for _i, batch in loaders.train(epoch)]


@pytest.mark.parametrize("cache", ["ram", "device"])
@pytest.mark.parametrize("augment", ["pad_crop", "none"])
@pytest.mark.parametrize("flip", [True, False])
def test_images_of_their_own_size_are_identical(make, make_loaders, small, cache, augment, flip):
    values = {"augment": augment, "flip": flip, "mean": [0.49, 0.48, 0.44], "std": [0.2, 0.3, 0.25]}
    (cached,) = node(make, small, cache=cache, **values)
    decoded = make_loaders(small, small, **values)
    for index in (0, 1):
        epoch = Epoch(COUNT, index=index, image_size=32, val_image_size=32, batch_per_worker=5)
        assert same_batches(train(cached, epoch), train(decoded, epoch), 0.0) == 5
    values["val_crop_ratio"] = 1.0
    (cached,) = node(make, small, cache=cache, **values)
    assert same_batches(cached.val(epoch), make_loaders(None, small, **values).val(epoch), 0) == 5


@pytest.mark.parametrize("augment", ["pad_crop", "none"])
@pytest.mark.parametrize("size", [24, 48])
def test_resized_images_are_within_two_levels(make, make_loaders, small, augment, size):
    """DALI resizes in the uncached pipeline, torch here."""
    values = {"augment": augment, **LEVELS}
    (cached,) = node(make, small, **values)
    decoded = make_loaders(small, small, **values)
    epoch = Epoch(COUNT, image_size=size, val_image_size=size, batch_per_worker=8)
    same_batches(train(cached, epoch), train(decoded, epoch), 2.0)
    same_batches(cached.val(epoch), decoded.val(epoch), 2.0)


def test_ranks_of_a_node_share_one_copy_and_decode_a_part_each(make, make_loaders, small):
    ranks = node(make, small, size=3)
    caches = [loaders._prefetchers["train"].cache for loaders in ranks]
    before = caches[2].pixels[0, 0, 0, 0].item()
    caches[0].pixels[0, 0, 0, 0] = 255 - before
    assert caches[2].pixels[0, 0, 0, 0].item() == 255 - before
    caches[0].pixels[0, 0, 0, 0] = before
    epoch = Epoch(COUNT, world_size=3, image_size=32, val_image_size=32, batch_per_worker=2)
    for rank, loaders in enumerate(ranks):
        decoded = make_loaders(small, small, rank=rank, size=3, augment="pad_crop")
        same_batches(train(loaders, epoch), train(decoded, epoch), 0)


def test_the_memory_is_free_once_all_are_closed_or_killed(small):
    """A process that is killed leaves nothing: the memory never had a name."""
    code = f"""
import os, signal, torch
from hvdtrain.config.data import Data
from pipelines.loader import Loaders
data = Data(train={str(small)!r}, augment="pad_crop", cache="ram", decode_threads=1)
loaders = Loaders(data, seed=0, rank=0, world_size=1, device=torch.device("cpu"))
loaders.accept([loaders.offer()])
assert loaders._prefetchers["train"].cache.pixels.any()
os.kill(os.getpid(), signal.SIGKILL)
"""
    before = set(Path("/dev/shm").iterdir())
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert set(Path("/dev/shm").iterdir()) <= before


def test_closing_releases_the_memory(make, small):
    files = len(list(Path("/proc/self/fd").iterdir()))
    (loaders,) = node(make, small)
    loaders.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert "hvdtrain-pixels" not in Path("/proc/self/maps").read_text()


def test_images_of_another_size_are_refused_by_name(make, small, tmp_path):
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        for path in (small / folder).iterdir():
            (tmp_path / folder / path.name).symlink_to(path)
    photograph(1, 32, 31).save(tmp_path / "dog" / "odd.png")
    with pytest.raises(DataError, match=r"dog/odd\.png: 31x32 pixels, others have 32x32"):
        node(make, tmp_path)


def test_bad_files_are_masked_on_all_ranks_or_refused(make, small, tmp_path):
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        for path in (small / folder).iterdir():
            (tmp_path / folder / path.name).symlink_to(path)
    kinds = {name: kind for name, kind in bad_files.BAD.items() if kind.reason != "decode"}
    damaged = (small / "cat" / "0.png").read_bytes()
    kinds["crc"] = bad_files.Kind(lambda: bad_files.flipped(damaged, 50, 8), "decode", ".png")
    names = bad_files.write(kinds, tmp_path / "cat").values()
    with pytest.raises(DataError, match=r"/cat/"):
        node(make, tmp_path)
    config = {"train": str(tmp_path), "augment": "pad_crop", "cache": "ram", "on_bad": "mask"}
    ranks = filled(
        [
            Loaders(
                Data.model_validate({**config, "decode_threads": 1}),
                seed=0,
                rank=rank,
                world_size=2,
                local_rank=rank,
                local_size=2,
                device=torch.device("cpu"),
            )
            for rank in (0, 1)
        ]
    )
    total = COUNT + len(names)
    epoch = Epoch(total, world_size=2, image_size=32, batch_per_worker=4)
    batches = [batch for loaders in ranks for batch in train(loaders, epoch)]
    assert sum(float(batch.weights.sum()) for batch in batches) == COUNT
    bad = {bad.name: bad.reason for batch in batches for bad in batch.bad}
    reasons = {name: kind.reason for name, kind in kinds.items()}
    assert {Path(name).stem: reason for name, reason in bad.items()} == reasons
    for loaders in ranks:
        loaders.close()


def test_a_cache_larger_than_the_free_memory_is_refused(make, small, monkeypatch):
    monkeypatch.setattr("pipelines.cache._free_bytes", lambda: 10**4)
    with pytest.raises(DataError, match=r"data\.cache: the pixels of data\.train take"):
        node(make, small)


def test_random_resized_crops_are_not_cached():
    with pytest.raises(ValueError, match="cache needs augment: pad_crop or none"):
        Data.model_validate({"cache": "ram"})
