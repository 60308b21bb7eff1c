"""Made-up run directories with settings, seeds and results, for comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from hvdtrain.config.load import parse_config
from tests.report_runs import Log

CONFIG = """
data: {train: /data/train, val: /data/val}
model: {name: resnet8_cifar}
lr: {base: 0.1, warmup: none, schedule: constant}
phases: [{epochs: 2, image_size: 32, batch_per_worker: 5}]
"""


def made(
    root: Path,
    seed: int,
    *losses: float,
    settings: tuple[str, ...] = (),
    ranks: int = 2,
    finished: bool = True,
    val: str | None = "aaaa",
    train: str | None = "bbbb",
) -> Path:
    """A run of an evaluation with each of `losses`, after 20 updates of 10 s each. Top-1 is 1 - loss.

    `val` and `train` are fingerprints of its images; None: they are not recorded.
    """
    log = Log(root)
    cfg = parse_config(CONFIG, "made", [f"seed={seed}", f"name={root.name}", *settings])
    (root / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump()))
    log.json("environment.json", {"world_size": ranks, "host": "h", "versions": {"torch": "2"}})
    prints = {k: v for k, v in (("train", train), ("val", val)) if v}
    if prints:
        about = json.dumps({"fingerprints": prints, "accepted": []}).encode()
        np.savez(root / "dataset.npz", about=np.frombuffer(about, np.uint8))
    log.write(1000, "start", world_size=ranks, nodes=1, setup_seconds=5.0)
    time = 1000.0
    for epoch, loss in enumerate(losses, 1):
        for half in (10, 20):
            time += 10
            log.train(time, 20 * (epoch - 1) + half, loss=loss + 0.1)
        time += 1
        log.eval(time, 20 * epoch, 1 - loss)
    if finished:
        log.write(time + 1, "end", world_size=ranks, wall_seconds=time - 994)
    return root
