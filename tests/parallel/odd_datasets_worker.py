"""Open each dataset named on the command line on all ranks, and deal out one epoch of it."""

from __future__ import annotations

import hashlib
import json
import sys

from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import init_comm
from hvdtrain.config.data import Data
from pipelines.sampling import Pass, TrainingSampler, shard_starts
from pipelines.sources.opening import open_source

EPOCH = Pass(1, 32, 1.0, batch=3, start=0, interpolation="bilinear")


def check(path: str, comm: Comm) -> int:
    """The number of samples; all ranks see the same, and use each once."""
    source = open_source(path, "data.train")
    labels = hashlib.sha256(source.labels.tobytes()).hexdigest()
    seen = json.dumps([len(source), source.classes, labels, source.fingerprint])
    assert len(set(comm.gather_text(seen))) == 1, path
    data = Data.model_validate({"train": path})
    place = {"seed": 5, "rank": comm.rank, "world_size": comm.size}
    sampler = TrainingSampler(data, len(source), shard_starts(source), **place, quarantine=None)
    mine = [
        int(i)
        for share in sampler.shares(EPOCH)
        for i, weight in zip(share.indices, share.weights, strict=True)
        if weight
    ]
    used = [i for rank in comm.gather_text(json.dumps(mine)) for i in json.loads(rank)]
    assert sorted(used) == list(range(len(source))), path
    return len(source)


if __name__ == "__main__":
    comm = init_comm()
    counts = [check(path, comm) for path in sys.argv[1:]]
    if comm.rank == 0:
        print(json.dumps([comm.size, counts]))
    comm.shutdown()
