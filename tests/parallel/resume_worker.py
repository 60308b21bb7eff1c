"""Record sample ids and checksums of pixels of every batch of every rank, from several positions."""

from __future__ import annotations

import contextlib
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import parse_config
from hvdtrain.engine.build import open_loaders, share_data
from hvdtrain.plan.epochs import Plan, Position, make_plan
from pipelines.loader import Loaders

CONFIG = """
data: {{train: {root}, decode_threads: 1, {data}}}
phases:
  - {{epochs: 1, image_size: 16, batch_per_worker: {batch}}}
  - {{epochs: 2, image_size: 24, batch_per_worker: {second}, min_crop_area: 0.25}}
"""
DATA = {
    "crops": "augment: random_resized_crop",
    "cached": "augment: pad_crop, cache: ram, repeats: 2",
}
BATCHES = {1: (12, 14), 2: (8, 5), 4: (3, 4)}
"""Images per worker in the two phases, by number of ranks."""
STOPS = (1, 4, 7)
"""Steps of the second phase after which two ranks stop."""


def records(plan: Plan, loaders: Loaders, position: Position) -> Iterator[tuple[object, ...]]:
    """(epoch, step, sample, weight, checksum) of every sample after `position`."""
    epochs = list(plan.epochs_from(position))
    for epoch, then in zip(epochs, [*epochs[1:], None], strict=True):
        for i, batch in loaders.train(epoch, then):
            for sample, weight, image in zip(
                batch.indices.tolist(), batch.weights.tolist(), batch.images, strict=True
            ):
                checksum = zlib.crc32(image.contiguous().numpy().tobytes())
                yield epoch.index, i, sample, weight, checksum


def record(comm: Comm, root: str, kind: str, position: Position, path: Path) -> None:
    """Let rank 0 write the records of all ranks from `position` on."""
    batch, second = BATCHES[comm.size]
    cfg = parse_config(CONFIG.format(root=root, data=DATA[kind], batch=batch, second=second))
    with contextlib.closing(open_loaders(cfg, comm, torch.device("cpu"), 1)) as loaders:
        share_data(comm, loaders)
        plan = make_plan(cfg, comm.size, loaders.num_train)
        texts = comm.gather_text(json.dumps(list(records(plan, loaders, position))))
    if comm.rank == 0:
        path.write_text("[" + ", ".join(texts) + "]")


def main(root: str, out: Path) -> None:
    comm = init_comm()
    for kind in DATA:
        if comm.size == 2:
            record(comm, root, kind, Position(), out / f"{kind}-whole.json")
        for stop in STOPS:
            position = Position(1, stop * 2 * BATCHES[2][1])
            record(comm, root, kind, position, out / f"{kind}-{stop}-{comm.size}.json")
    comm.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
