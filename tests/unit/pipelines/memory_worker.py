"""Prints the resident memory in MiB after each of many changes of image size and batch.

Pages of files do not count: the kernel drops them and reads them again at any time.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path

import torch

from hvdtrain.config.data import Data
from pipelines.loader import Loaders
from tests.unit.pipelines.samples import Epoch


def resident_mib() -> int:
    """Of this process, anonymous and shared memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(e.split()[1]) for e in lines if e.startswith(("RssAnon", "RssShmem"))) >> 10


def main(root: str, changes: int) -> None:
    rng = random.Random(0)
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
            found.append(resident_mib())
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
