"""Prints the resident memory in MiB after each of many changes of image size and batch."""

from __future__ import annotations

import itertools
import json
import random
import sys

import psutil
import torch

from hvdtrain.config import Data
from pipelines.loader import Loaders
from tests.unit.pipelines.samples import Epoch


def main(root: str, changes: int) -> None:
    rng, process = random.Random(0), psutil.Process()
    data = Data(train=root, val=root, decode_threads=2)
    found = []
    with Loaders(data, seed=0, rank=0, world_size=1, device=torch.device("cpu")) as loaders:
        epochs = [
            Epoch(
                loaders.num_train,
                index=k,
                image_size=rng.choice([96, 128, 160, 192, 224]),
                val_image_size=rng.choice([128, 224]),
                batch_per_worker=rng.choice([4, 8, 16, 24]),
            )
            for k in range(changes + 1)
        ]
        for epoch, then in itertools.pairwise(epochs):
            for _i, _batch in loaders.train(epoch, then):
                pass
            for _batch in loaders.val(epoch):
                pass
            found.append(process.memory_info().rss >> 20)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
