"""A fixed choice of images: the same at every pass, and prepared as for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hvdtrain.config.data import Data
from hvdtrain.config.load import parse_config
from hvdtrain.plan.epochs import make_plan
from pipelines.fixed import FixedImages, Preparation, chosen_batches
from pipelines.loader import Batch, Loaders
from pipelines.sources import open_source

CPU = torch.device("cpu")


@pytest.mark.parametrize(("images", "batch"), [(7, 3), (100, 4), (1, 5), (12, 4)])
def test_every_sample_is_chosen_once_and_batches_are_even(images: int, batch: int) -> None:
    chosen = chosen_batches(22, images, batch, seed=0)
    ids = np.concatenate(chosen)
    assert len(ids) == len({*ids.tolist()}) == min(images, 22)
    lengths = [len(one) for one in chosen]
    assert max(lengths) <= batch
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_each_batch_has_images_of_all_parts_of_a_dataset() -> None:
    for one in chosen_batches(10_000, 500, 100, seed=0):
        assert len({*(one // 1000).tolist()}) == 10


@pytest.fixture
def data(small_root: Path) -> Data:
    return Data(train=str(small_root / "train"), val=str(small_root / "val"), val_crop_ratio=0.8)


def images(data: Data, batches: list[np.ndarray], keep_bytes: float) -> FixedImages:
    assert isinstance(data.val, str)
    how = Preparation(16, "bicubic", CPU, threads=1)
    return FixedImages(open_source(data.val, "data.val"), batches, data, how, keep_bytes)


def as_evaluated(data: Data) -> Iterator[Batch]:
    """The loader's own evaluation of all images."""
    cfg = parse_config(
        "phases: [{epochs: 1, image_size: 16, batch_per_worker: 5, interpolation: bicubic}]"
    )
    with Loaders(data, seed=0, rank=0, world_size=1, device=CPU, training=False) as loaders:
        yield from loaders.val(make_plan(cfg, 1, 10).epochs[0])


@pytest.mark.parametrize("keep_bytes", [0, 3 * 4 * 16 * 16 * 7, 1e9])
def test_every_pass_gives_what_evaluation_gives(data: Data, keep_bytes: float) -> None:
    expected = {}
    for batch in as_evaluated(data):
        pairs = zip(batch.images, batch.labels, strict=True)
        expected |= dict(zip(batch.indices.tolist(), pairs, strict=True))
    batches = chosen_batches(14, 13, 5, seed=0)
    with images(data, batches, keep_bytes) as fixed:
        assert fixed.num_images == 13
        for _ in range(3):
            found = list(fixed)
            assert [batch.indices.tolist() for batch in found] == [one.tolist() for one in batches]
            for batch in found:
                assert batch.weights.tolist() == [1.0] * len(batch.labels)
                for i, image, label in zip(batch.indices, batch.images, batch.labels, strict=True):
                    assert torch.equal(image, expected[i][0])
                    assert label == expected[i][1]


def test_what_is_kept_is_not_decoded_again(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    with images(data, chosen_batches(14, 6, 3, seed=0), 1e9) as fixed:
        first = list(fixed)
        monkeypatch.setattr(fixed._prefetcher, "open", lambda *_: pytest.fail("decoded again"))
        again = list(fixed)
    assert all(a.images is b.images for a, b in zip(first, again, strict=True))


def test_a_rank_may_have_no_batch(data: Data) -> None:
    with images(data, [], 1e9) as fixed:
        assert list(fixed) == []
