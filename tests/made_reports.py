"""Reports with every value set, for tests that change some of them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from hvdtrain.telemetry.lost_time import CAUSES
from hvdtrain.telemetry.reports import (
    Checkpoint,
    End,
    Eval,
    Measured,
    Note,
    Report,
    Scaling,
    Start,
    Stop,
    Train,
    Weights,
)

MEASURED = Measured(
    loss=2.5,
    top1=0.25,
    top5=0.5,
    samples=640.0,
    seconds=0.5,
    images_per_second=1234.5,
    step_seconds=0.05,
    network_bytes_per_second=1e6,
    data_wait_ratio=0.1,
    comm_wait_ratio=0.05,
    bad_samples=0.0,
    read_retries=0.0,
)
SCALING = Scaling(
    efficiency=0.93,
    efficiency_so_far=0.9,
    efficiency_ceiling=0.97,
    lost=dict.fromkeys(CAUSES, 0.01),
    cause="straggling",
    straggler=0,
    explanation="7% of the time is lost",
)
TRAIN = Train(
    step=20,
    epoch=1.5,
    epochs=3,
    progress=0.5,
    eta_s=312.0,
    phase=1,
    image_size=128,
    batch_per_worker=32,
    global_batch_size=64,
    total_samples=1280,
    lr=0.1,
    momentum=0.9,
    gradient_norm=3.0,
    skipped_updates=2.0,
    loss_scale=1024.0,
    measured=MEASURED,
    gradient_noise_scale=1310.4,
    scaling=SCALING,
)
EVAL = Eval(epoch=2.0, step=40, images=50000, loss=1.5, top1=0.5, top5=0.9)
CHECKPOINT = Checkpoint(path="p", seconds=0.5, bytes=4096, step=20)
END = End(
    name="name",
    run_dir="run-1",
    world_size=4,
    epochs=18,
    steps=20,
    samples=640,
    loss=1.25,
    top1=0.75,
    top5=0.95,
    images_per_second=1234.5,
    scaling_efficiency=None,
    lost_time=None,
    comm={"tune": "fixed", "group_mb": 16.0, "compression": "none"},
    noise_scale=None,
    train_seconds=60.5,
    wall_seconds=70.0,
)
REPORTS: tuple[Report, ...] = (
    Start(2, 1, 3.5, restarts_after_signal=1, restarts_after_crash=2),
    TRAIN,
    EVAL,
    CHECKPOINT,
    Note("text"),
    Stop("signal", 20),
    END,
    Weights(1.0, 20, 2.5, {"stem": 2.5}, 1.5, {"stem": 1.5}, 3.0, 20, [0.1] * 101),
)
"""One of each kind."""


def train(**changes: Any) -> Train:
    """TRAIN with other values, wherever in it they are."""
    parts: dict[str, Any] = {}
    for name, part in (("measured", MEASURED), ("scaling", SCALING)):
        own = {field.name for field in fields(part)} & changes.keys()
        parts[name] = replace(part, **{key: changes.pop(key) for key in own})
    return replace(TRAIN, **parts, **changes)
