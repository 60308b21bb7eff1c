"""Seconds and memory to open a large dataset and to compute the order of one epoch.

`python benchmarks/index.py` writes datasets of 1.3 million images to a temporary folder: a packed
dataset whose shards are sparse files, plain tar shards and, with --folder, class folders of empty
files. It opens each in a new process with a warm page cache; the tar shards first without, then
with the index that `hvdtrain data index` saves. Memory is what a process needs beyond its imports.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLASSES = 1000
SHARD_IMAGES = 4096
NAME = "n{label:08d}_{number}.JPEG"


def rss_mb() -> float:
    """Resident memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_mb() -> float:
    """Peak resident memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def write_packed(root: Path, count: int) -> None:
    """Write a packed dataset whose shards are sparse files: full size, but no disk blocks."""
    from pipelines.commands.pack_folder import PackingFolder
    from pipelines.commands.pack_options import PackOptions

    class Listing:
        classes = [f"n{k:08d}" for k in range(CLASSES)]  # noqa: RUF012
        labels = np.sort(np.arange(count, dtype=np.int32) % CLASSES)
        fingerprint = "0"

        def __len__(self) -> int:
            return count

        def name(self, i: int) -> str:
            label = int(self.labels[i])
            return f"{self.classes[label]}/{NAME.format(label=label, number=i)}"

    source = Listing()
    options = PackOptions((None, 160, 256), shard_images=SHARD_IMAGES)
    with PackingFolder("SRC", str(root), source, options) as folder:  # type: ignore[arg-type]
        for shard in folder.missing(redo_bad=True):
            samples = np.array(folder.samples(shard), dtype=np.int64)
            rows = [samples, samples % 400 + 100, samples % 300 + 100]
            for size in (110_000, 13_000, 30_000):
                places = np.arange(len(samples)) * (size + 2048)
                rows += [places, np.full(len(samples), size), samples % 2**32]
            table = np.stack(rows, axis=1)
            sizes = [len(samples) * (size + 2048) for size in (110_000, 13_000, 30_000)]
            for name, size in zip(("orig", "160", "256"), sizes, strict=True):
                with folder.shard(name, shard).open("wb") as file:
                    file.truncate(size)
            folder.record(shard, table.tolist(), [(size, 0) for size in sizes], [])
        folder.finish(source, skip_bad=False)  # type: ignore[arg-type]


def write_shards(root: Path, count: int) -> None:
    """Write plain WebDataset shards with images of 16 bytes."""
    from pipelines.commands.shard_writer import ShardWriter

    root.mkdir()
    for shard, first in enumerate(range(0, count, SHARD_IMAGES)):
        writer = ShardWriter(root / f"{shard:05d}.tar")
        for i in range(first, min(first + SHARD_IMAGES, count)):
            writer.add(f"{i:09d}", b"\xff\xd8" + b"x" * 14, i % CLASSES)
        writer.close()


def write_folder(root: Path, count: int) -> None:
    """Write empty files in class folders."""
    for label in range(CLASSES):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(label, count, CLASSES):
            os.close(os.open(folder / NAME.format(label=label, number=number), os.O_CREAT, 0o644))


def open_it(path: str) -> dict[str, float]:
    """Open the dataset at `path` and compute the order of one epoch; returns seconds and MB."""
    from pipelines import order
    from pipelines.sources import open_source
    from pipelines.sources.packed import Packed

    import_mb = rss_mb()
    began = time.perf_counter()
    source = open_source(path, "data.train")
    if isinstance(source, Packed):
        source.at(160)
    opened = time.perf_counter()
    places = order.permutation(len(source), seed=0, epoch=1)
    ordered = time.perf_counter()
    assert len(places) == len(source)
    return {
        "images": len(source),
        "open_s": round(opened - began, 3),
        "order_s": round(ordered - opened, 3),
        "held_mb": round(rss_mb() - import_mb, 1),
        "peak_mb": round(peak_mb() - import_mb, 1),
    }


def opened(kind: str, path: Path) -> dict[str, float]:
    """Run `open_it` in a new process; prints and returns its result."""
    command = [sys.executable, __file__, "--open", str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(output)
    print(f"{kind:<16}" + "  ".join(f"{k} {v}" for k, v in result.items()), flush=True)
    return result


def main() -> None:
    """Write each dataset and open it in a new process."""
    from pipelines.sources.tar import write_index

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 images")
    parser.add_argument("--images", type=int, help="number of images (default 1,300,000)")
    parser.add_argument("--folder", action="store_true", help="also open class folders of files")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(open_it(options.open)))
        return
    kinds = {"packed": write_packed, "shards": write_shards}
    if options.folder:
        kinds["folder"] = write_folder
    count = options.images or (100_000 if options.quick else 1_300_000)
    result = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, write in kinds.items():
            path = Path(scratch) / kind
            write(path, count)
            result[kind] = opened(kind, path)
            if kind == "shards":
                write_index(str(path))
                result["shards, indexed"] = opened("shards, indexed", path)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
