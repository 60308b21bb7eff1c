"""Batches, networks and states of training made by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Optimizer
from hvdtrain.engine.reducer import Reducer
from hvdtrain.engine.step import State, StepSettings
from hvdtrain.optim import build_optimizer


@dataclass
class Images:
    """A batch made by hand."""

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    partners: None = None

    @property
    def copies(self) -> np.ndarray:
        return np.arange(len(self.labels))


def images(count: int, seed: int = 0, classes: int = 7) -> Images:
    generator = torch.Generator().manual_seed(seed)
    return Images(
        torch.randn(count, 3, 8, 8, generator=generator),
        torch.randint(0, classes, (count,), generator=generator),
        torch.ones(count),
    )


def drained(state: State) -> float | None:
    """The noise scale after summing the rows of all ranks, as the loop does at every report."""
    return state.noise.take(state.comm.sum_(state.noise.rows(), "noise").tolist())


def network(norm: bool = False) -> nn.Module:
    torch.manual_seed(3)
    middle = [nn.BatchNorm2d(6)] if norm else []
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 7)
    )


def state_of(model: nn.Module, **options: Any) -> State:
    accumulate = options.pop("accumulate", 1)
    comm = options.pop("comm", Solo())
    cfg = Optimizer.model_validate(options)
    reducer = Reducer(model.parameters(), comm, accumulate=accumulate, group_bytes=3000)
    return State(
        model=model,
        optimizer=build_optimizer(model, cfg, ranks=comm),
        reducer=reducer,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        comm=comm,
        settings=StepSettings(torch.device("cpu"), clip_norm=cfg.clip_norm),
    )
