"""Images of loaders by sample id, and the threads that made them."""

from __future__ import annotations

import threading

import torch

from tests.unit.pipelines.samples import Epoch


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
    """Images by sample id, of all ranks of `epoch.world_size`; each may occur once."""
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
