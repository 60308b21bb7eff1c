"""Train several small variants in one job; rank 0 writes losses and final weights of each.

One more run goes on from job to job, on as many ranks as each has, with the same config.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from hvdtrain import train as loop
from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import parse_config
from hvdtrain.engine.calibrate import WorkerSpeed
from hvdtrain.engine.checkpoint import list_checkpoints
from hvdtrain.engine.step import State
from hvdtrain.errors import Preempted
from hvdtrain.report import write
from hvdtrain.run import efficiency
from hvdtrain.train import train

CONFIG = """
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}
model: {{{model}}}
optimizer: {{clip_norm: {clip}}}
lr: {{base: 0.4, warmup_epochs: 1, schedule: cosine}}
phases:
  - {{epochs: 1, image_size: 16, batch_per_worker: {batch}}}
  - {{epochs: {epochs}, image_size: 24, batch_per_worker: {batch}}}
train: {{precision: fp32, accumulate: {accumulate}, channels_last: {channels_last}, log_every: 1}}
comm: {{group_mb: 0.02, compression: none}}
metrics: {{enabled: false}}
"""
GLOBAL_BATCH = 16
PLAIN = {
    "accumulate": 1,
    "channels_last": "false",
    "clip": "null",
    "model": "name: resnet8_gn",
    "epochs": 2,
}
VARIANTS = {
    "plain": PLAIN,
    "channels_last": {**PLAIN, "channels_last": "true"},
    "accumulate": {**PLAIN, "channels_last": "true", "accumulate": 2},
    "clip": {**PLAIN, "channels_last": "true", "accumulate": 2, "clip": "0.5"},
    # Two sums a layer and step: on few cores that is most of its time.
    "batch_norm": {**PLAIN, "model": "name: resnet8_cifar, batch_norm: global", "epochs": 1},
}
STOPS = {4: 5, 2: 13, 1: 99}
"""Steps after which the run that goes on is stopped, by number of ranks."""
train_step = loop.train_step
samples: list[list[int]] = []
"""Images of each step on this rank, without padding."""


def elastic(comm: Comm, root: str, out: Path) -> None:
    """Go on with one run, and let rank 0 write the images that every rank had in each step."""

    def step(state: State, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        samples.append(batch.indices[batch.weights.numpy() > 0].tolist())
        if state.progress.step + 1 == STOPS[comm.size] and comm.rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(state, batch, *args, **kwargs)

    loop.train_step = step
    cfg = parse_config(CONFIG.format(root=root, batch=GLOBAL_BATCH // 4, **VARIANTS["plain"]))
    with contextlib.suppress(Preempted):
        train(cfg, comm, resume="auto", run_dir=out / "elastic")
    texts = comm.gather_text(json.dumps(samples))
    if comm.rank == 0:
        (out / f"samples-{comm.size}.json").write_text("[" + ", ".join(texts) + "]")


def main(root: str, out: Path) -> None:
    comm = init_comm()
    write.write_report = lambda *_: []  # a page takes longer than the training here
    for name, variant in VARIANTS.items():
        if name != "plain":  # one variant shows that calibration changes nothing
            efficiency.calibrate = lambda *_: WorkerSpeed(1000.0, 0.001)
        batch = GLOBAL_BATCH // comm.size // int(variant["accumulate"])
        cfg = parse_config(CONFIG.format(root=root, batch=batch, **variant))
        run_dir = out / f"{name}-{comm.size}"
        summary = train(cfg, comm, run_dir=run_dir)
        if comm.rank == 0:
            events = [json.loads(line) for line in (run_dir / "events.jsonl").open()]
            losses = [event["loss"] for event in events if event["kind"] == "train"]
            checkpoint = list_checkpoints(run_dir / "checkpoints")[0]
            weights = safetensors.torch.load_file(checkpoint / "model.safetensors")
            safetensors.torch.save_file(weights, out / f"{name}-{comm.size}.safetensors")
            result = {"losses": losses, "top1": summary["top1"], "val_loss": summary["loss"]}
            (out / f"{name}-{comm.size}.json").write_text(json.dumps(result))
    elastic(comm, root, out)
    comm.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
