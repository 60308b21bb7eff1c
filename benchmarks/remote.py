"""How fast a loader reads tar shards from a server, beside the same shards on the disk.

`python benchmarks/remote.py --rounds 3` makes shards of photographs, serves them by nginx on this machine (a small
Python server without nginx), and loads all images in turn: from the disk, through an empty cache (each byte comes
over the link once), and through a full one. The order is a full shuffle. The last line is one JSON object: images/s
(medians), their ratios to the disk, and the peak memory of the loading process above that of the disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
KINDS = ("disk", "empty cache", "full cache")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--images", type=int, default=16, help="in each shard")
    parser.add_argument("--side", type=int, default=400, help="of the photographs, in pixels")
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(*args.load)))
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        work = Path(name)
        make(work / "shards", args.shards, args.images, args.side)
        with serving(work / "shards", work) as url:
            found = rounds(args, work, url)
    rates = {kind: statistics.median(one["images_per_s"] for one in found[kind]) for kind in KINDS}
    memory = {kind: statistics.median(one["peak_mb"] for one in found[kind]) for kind in KINDS}
    result = {
        "images": args.shards * args.images,
        "images_per_s": rates,
        "of_disk": {kind: round(rates[kind] / rates["disk"], 3) for kind in KINDS[1:]},
        "more_memory_mb": {kind: round(memory[kind] - memory["disk"], 1) for kind in KINDS[1:]},
    }
    print(json.dumps(result))


def rounds(args: argparse.Namespace, work: Path, url: str) -> dict[str, list[dict[str, float]]]:
    """Speed and memory of each kind, in turn."""
    pattern = f"{{00000..{args.shards - 1:05d}}}.tar"
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    measure(f"{url}/{pattern}", work / "cache")  # makes the index
    for _ in range(args.rounds):
        for kind in KINDS:
            if kind == "empty cache":  # the index stays: it is made once
                shutil.rmtree(work / "cache" / "blocks")
                (work / "cache" / "blocks").mkdir()
            path = f"{work}/shards/{pattern}" if kind == "disk" else f"{url}/{pattern}"
            found[kind].append(measure(path, work / "cache"))
            print(kind, found[kind][-1], flush=True)
    return found


def make(folder: Path, shards: int, images: int, side: int) -> None:
    """Tar shards of different JPEG photographs."""
    from tests.unit.pipelines.samples import photograph
    from tests.unit.pipelines.tar_samples import make as make_tar

    folder.mkdir()
    pictures = []
    for k in range(64):
        file = folder / "one.jpg"
        photograph(k, side, side * 4 // 3).save(file, quality=98)
        pictures.append(file.read_bytes())
    (folder / "one.jpg").unlink()
    for shard in range(shards):
        files = []
        for k in range(images):
            number = shard * images + k
            files.append((f"{number:07d}.jpg", pictures[number % len(pictures)]))
            files.append((f"{number:07d}.cls", str(number % 10).encode()))
        make_tar(folder / f"{shard:05d}.tar", *files)


@contextmanager
def serving(folder: Path, work: Path) -> Iterator[str]:
    """The address of a server of `folder`."""
    from tests import stores, web

    if stores.NGINX:
        with stores.nginx(folder, work) as address:
            yield address
    else:
        with web.serving(folder) as served:
            yield served.url


def measure(path: str, cache: Path) -> dict[str, float]:
    """One pass in a process of its own."""
    command = [sys.executable, __file__, "--load", path, str(cache)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def load(path: str, cache: str) -> dict[str, float]:
    """Images per second of one epoch, and the peak memory of this process."""
    import torch

    from hvdtrain.config.data import Data
    from pipelines.loader import Loaders
    from tests.unit.pipelines.samples import Epoch

    data = Data.model_validate({"train": path, "remote_cache": {"folder": cache}})
    with Loaders(data, seed=0, rank=0, world_size=1, device=torch.device("cpu")) as loaders:
        epoch = Epoch(num_train=loaders.num_train, image_size=128, batch_per_worker=64)
        began, images = time.perf_counter(), 0
        for _i, batch in loaders.train(epoch):
            images += len(batch.labels)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"images_per_s": round(images / seconds, 1), "peak_mb": round(peak, 1)}


if __name__ == "__main__":
    main()
