"""A training problem whose gradient noise scale is known exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Optimizer
from hvdtrain.engine.noise_meter import NoiseMeter
from hvdtrain.engine.reducer import Reducer
from hvdtrain.engine.step import State, StepSettings, train_step
from hvdtrain.optim import build_optimizer
from tests.step_samples import Images, drained

FEATURES = 64
BATCH = 64
"""Images of each part, which is a rank or a micro-batch."""
EXACT = float(FEATURES)
"""Inputs are N(μ, I) with |μ| = 1. At zero weights both classes have probability 1/2, so an image's
gradient is ±x/2, and tr(Σ)/|G|² = tr(I)/|μ|²."""


def state_on(comm: Comm, *, every: int, accumulate: int = 1, **options: Any) -> State:
    model = nn.Linear(FEATURES, 2, bias=False)
    nn.init.zeros_(model.weight)
    parts = comm.size if comm.size > 1 else accumulate
    return State(
        model=model,
        reducer=Reducer(model.parameters(), comm, accumulate=accumulate, group_bytes=100),
        optimizer=build_optimizer(model, Optimizer(weight_decay=0.0)),
        comm=comm,
        settings=StepSettings(torch.device("cpu")),
        noise=NoiseMeter(every, parts),
        **{"scaler": torch.amp.GradScaler("cpu", enabled=False), **options},
    )


def batches(comm: Comm, steps: int, accumulate: int = 1) -> list[Images]:
    """This rank's share of `steps` steps."""
    generator = torch.Generator().manual_seed(11 + comm.rank)
    count = BATCH * accumulate
    mean = torch.full((FEATURES,), FEATURES**-0.5)
    return [
        Images(
            torch.randn(count, FEATURES, generator=generator) + mean,
            torch.zeros(count, dtype=torch.int64),
            torch.ones(count),
        )
        for _ in range(steps)
    ]


def measured(state: State, data: list[Images], lr: float = 0.0) -> float:
    """The noise scale after one step on each batch of `data`."""
    scale = None
    for number, batch in enumerate(data):
        train_step(state, batch, lr, 0.9)
        if number % 20 == 19 or number + 1 == len(data):
            scale = drained(state)
    assert scale is not None
    return scale
