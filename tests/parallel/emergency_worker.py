"""Train on two ranks, of which one fails in mid-epoch; resume, and train the same without a fault.

Writes `rank-N.json`: exit code and line of the error that each rank got, by the case.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import hvdtrain.train as loop
from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import HvdtrainError
from hvdtrain.train import train
from pipelines import order
from pipelines.loader import Loaders
from pipelines.sources import ImageFolder

CONFIG = """
data: {{train: {root}/images, val: {root}/validation, augment: pad_crop, decode_threads: 1}}
model: {{name: {model}}}
optimizer: {optimizer}
lr: {{base: 0.02, warmup: none, schedule: constant}}
phases: [{{epochs: 2, image_size: 16, batch_per_worker: 2}}]
train: {{log_every: 3, ema_decay: 0.9, compute_threads: 1}}
checkpoint: {{every_epochs: 100, every_minutes: null, keep: 9}}
comm: {{preflight: false, compression: {compression}}}
metrics: {{enabled: false}}
"""
SHARED = "{name: muon, share_work: true, lookahead: {every: 3, share: [1, 0.2], power: 3}}"
"""Ranks that wait for each other in an update, and weights that change between updates."""
STEPS = {"middle": 4, "first": 6, "evaluation": 12}
"""Updates before the one, or the evaluation, for which rank 1 gets no images; an epoch has 6."""
COUNT = 22
GLOBAL = "resnet8_cifar, batch_norm: global"


def config(
    root: Path,
    model: str = "resnet8_cifar",
    optimizer: str = SHARED,
    compression: str = "none",
) -> Config:
    return parse_config(
        CONFIG.format(root=root, model=model, optimizer=optimizer, compression=compression)
    )


def hidden(step: int) -> int:
    """The image with which rank 1 begins its share of that update."""
    epoch, within = divmod(step, 6)
    ids = order.permutation(COUNT, seed=0, epoch=epoch)
    shares = list(order.shares(ids, 0, 2, 1, 2))
    return int(shares[within].indices[0])


class Hidden:
    """While active, rank 1 misses the file of a sample of `folder`."""

    def __init__(self, comm: Comm, folder: Path, sample: int) -> None:
        self.comm, self.folder, self.sample, self.read = comm, folder, sample, ImageFolder.read

    def __enter__(self) -> None:
        def reading(source: ImageFolder, i: int):  # type: ignore[no-untyped-def]
            file = Path(source.name(i))
            if self.comm.rank == 1 and i == self.sample and file.is_relative_to(self.folder):
                moved = file.rename(self.folder.parent / "moved.jpg")
                try:
                    return self.read(source, i)
                finally:
                    moved.rename(file)
            return self.read(source, i)

        ImageFolder.read = reading  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        ImageFolder.read = self.read  # type: ignore[method-assign]


def error_of(comm: Comm, cfg: Config, run_dir: Path, *, begun: bool = False) -> list[object]:
    try:
        train(cfg, comm, run_dir=run_dir, resume="auto" if begun else "never")
    except HvdtrainError as error:
        return [error.exit_code, error.everywhere, str(error)]
    return []


def leave(comm: Comm, out: Path) -> None:
    """Let rank 1 leave in mid-epoch, and end when rank 0 has."""
    give = Loaders.train

    def giving(loaders, epoch, then=None):  # type: ignore[no-untyped-def]
        for i, batch in give(loaders, epoch, then):
            if i == 4:
                comm.shutdown()
                while not (out / "rank-0.json").exists():
                    time.sleep(0.05)
                sys.exit()
            yield i, batch

    if comm.rank == 1:
        Loaders.train = giving  # type: ignore[method-assign]


def deserted(comm: Comm, out: Path) -> None:
    """Rank 1 leaves, and its errors of PowerSGD with it."""
    leave(comm, out)
    cfg = config(ROOT, "resnet8_gn", "{}", "powersgd")
    found = {"compressed": error_of(comm, cfg, out / "compressed")}
    (out / "rank-0.json").write_text(json.dumps(found))


def main(comm: Comm, out: Path) -> None:
    train(config(ROOT), comm, run_dir=out / "whole")
    found = {}
    for case, step in STEPS.items():
        evaluating = case == "evaluation"
        folder = ROOT / ("validation" if evaluating else "images")
        with Hidden(comm, folder, 1 if evaluating else hidden(step)):
            found[case] = error_of(comm, config(ROOT), out / "failing", begun=bool(found))
        comm.gather_text("")
    train(config(ROOT), comm, resume=str(out / "failing"))
    with Hidden(comm, ROOT / "images", hidden(STEPS["middle"])):
        found["global"] = error_of(comm, config(ROOT, GLOBAL), out / "global")
    comm.gather_text("")
    if comm.rank == 1:
        (out / "rank-1.json").write_text(json.dumps(found))
    leave(comm, out)
    found["gone"] = error_of(comm, config(ROOT, "resnet8_gn", "{}"), out / "gone")
    (out / "rank-0.json").write_text(json.dumps(found))


if __name__ == "__main__":
    ROOT = Path(sys.argv[1])
    loop.write_page = lambda run: None  # matplotlib takes seconds
    (deserted if sys.argv[3:] else main)(init_comm(), Path(sys.argv[2]))
