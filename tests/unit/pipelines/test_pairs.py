"""Training images with partners: each image once on either side of a pair, through any stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hvdtrain.config.data import Data
from pipelines import order
from pipelines.loader import Loaders
from pipelines.sampling import TrainingSampler
from pipelines.sources import ImageFolder
from tests.unit.pipelines.loaded import pixels
from tests.unit.pipelines.samples import COUNT, Epoch

Pair = tuple[int, int]


def pairs(count: int, epoch: Epoch, shuffle: str = "full") -> list[Pair]:
    """(own, partner) of every place with weight, in the global order; ids with their copies."""
    ranks = []
    for rank in range(epoch.world_size):
        data = Data.model_validate({"shuffle": shuffle, "shuffle_window": 5})
        starts, size = np.arange(0, count, 6), epoch.world_size
        place = {"seed": 3, "rank": rank, "world_size": size, "quarantine": None}
        sampler = TrainingSampler(data, count, starts, pairs=True, **place)
        shares = sampler.shares(sampler.spec(epoch))
        ranks.append(np.stack([np.stack([share.copies, share.weights]) for share in shares]))
    steps = np.stack(ranks, axis=-1)  # [steps, 2, 2 * batch, ranks]
    own, other = np.split(steps, 2, axis=2)
    assert (own[:, 1] == other[:, 1]).all()
    used = own[:, 1].reshape(-1) == 1
    ids = [half[:, 0].reshape(-1)[used].astype(int).tolist() for half in (own, other)]
    return list(zip(*ids, strict=True))


@pytest.mark.parametrize("shuffle", ["full", "shards"])
def test_every_image_is_once_on_each_side_on_any_number_of_ranks(shuffle: str) -> None:
    whole = pairs(50, Epoch(50, 1, 2, batch_per_worker=12), shuffle)
    own, others = zip(*whole, strict=True)
    assert sorted(own) == list(range(50))
    assert sorted(others) == [i + order.COPY for i in range(50)]  # with changes of their own
    assert sum(a != b - order.COPY for a, b in whole) > 45
    for ranks, batch, start in ((2, 6, 0), (4, 3, 0), (4, 3, 24), (2, 5, 30)):
        epoch = Epoch(50, ranks, 2, batch_per_worker=batch, start=start)
        assert pairs(50, epoch, shuffle) == whole[start:]
    assert pairs(50, Epoch(50, 1, 3, batch_per_worker=12), shuffle) != whole


def test_partners_have_their_own_pixels_and_labels(folder) -> None:
    values = {"train": str(folder), "augment": "none", "flip": False, "decode_threads": 1}
    data, cpu = Data.model_validate(values), torch.device("cpu")
    with Loaders(data, seed=5, rank=0, world_size=1, device=cpu, pairs=True) as loaders:
        batches = [batch for _i, batch in loaders.train(Epoch(batch_per_worker=5))]
    labels = ImageFolder(str(folder), "data.train").labels
    own = pixels(batches)
    found = []
    for batch in batches:
        assert batch.images.shape == batch.partners.images.shape == (5, 3, 24, 24)
        assert torch.equal(batch.weights, batch.partners.weights)
        for image, label, weight in zip(*batch.partners, strict=True):
            if weight:
                [i] = [i for i, one in own.items() if torch.equal(one, image)]
                assert label == labels[i]
                found.append(i)
    assert sorted(found) == list(range(COUNT))
