"""Parameters of every kind, and the optimizers in float64 as their papers write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from hvdtrain.comm.ranks import Solo
from hvdtrain.engine.reducer import Reducer

Array = np.ndarray[Any, np.dtype[np.float64]]
MOMENTUM, BETA2, EPS, DECAY, TRUST = 0.9, 0.99, 1e-6, 0.05, 0.02


class Mixture(nn.Module):
    """Parameters of every kind: 4-D (channels_last, one of 1×1), 2-D, 1-D, a scalar, zeros."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.conv = nn.Conv2d(3, 6, 3)
        self.point = nn.Conv2d(6, 4, 1)
        self.norm = nn.BatchNorm2d(6)
        self.zero = nn.Linear(5, 4)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.classifier = nn.Linear(24, 7)
        nn.init.zeros_(self.zero.weight)


def mixture() -> tuple[nn.Module, Reducer]:
    model = Mixture().to(memory_format=torch.channels_last)
    return model, Reducer(model.parameters(), Solo(), group_bytes=500)


class Lars64:
    """You et al. 2017, algorithm 1, for one tensor."""

    def __init__(self, w: Array, decay: float) -> None:
        self.v, self.decay, self.adapt = np.zeros_like(w), decay, w.ndim > 1

    def step(self, w: Array, g: Array, lr: float) -> Array:
        wn, gn = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
        local = TRUST * wn / (gn + self.decay * wn) if self.adapt and wn > 0 and gn > 0 else 1.0
        self.v = MOMENTUM * self.v + lr * local * (g + self.decay * w)
        return w - self.v


class TimmLars64:
    """timm's Lars, the rate outside the buffer; its eps of 1e-8 is below what is compared."""

    def __init__(self, w: Array, decay: float) -> None:
        self.v, self.decay, self.adapt = np.zeros_like(w), decay, w.ndim > 1

    def step(self, w: Array, g: Array, lr: float) -> Array:
        wn, gn = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
        ratio = TRUST * wn / (gn + wn * self.decay + 1e-8) if self.adapt and wn > 0 < gn else 1.0
        self.v = MOMENTUM * self.v + ratio * (g + self.decay * w)
        return w - lr * self.v


class Lamb64:
    """You et al. 2020, algorithm 2, with φ the identity."""

    def __init__(self, w: Array, decay: float) -> None:
        self.m, self.v, self.t = np.zeros_like(w), np.zeros_like(w), 0
        self.decay, self.adapt = decay, w.ndim > 1

    def step(self, w: Array, g: Array, lr: float) -> Array:
        self.t += 1
        self.m = MOMENTUM * self.m + (1 - MOMENTUM) * g
        self.v = BETA2 * self.v + (1 - BETA2) * g**2
        m, v = self.m / (1 - MOMENTUM**self.t), self.v / (1 - BETA2**self.t)
        u = m / (np.sqrt(v) + EPS) + self.decay * w
        wn, un = np.sqrt((w**2).sum()), np.sqrt((u**2).sum())
        return w - lr * (wn / un if self.adapt and wn > 0 and un > 0 else 1.0) * u


class Sgd64:
    """Nesterov's momentum in torch's form, decay as an L2 term."""

    def __init__(self, w: Array, decay: float) -> None:
        self.v, self.decay = np.zeros_like(w), decay

    def step(self, w: Array, g: Array, lr: float) -> Array:
        g = g + self.decay * w
        self.v = MOMENTUM * self.v + g
        return w - lr * (g + MOMENTUM * self.v)


class AdamW64:
    """Loshchilov and Hutter 2019, algorithm 2, decay times the rate."""

    def __init__(self, w: Array, decay: float) -> None:
        self.lamb, self.decay = Lamb64(w, 0.0), decay
        self.lamb.adapt = False

    def step(self, w: Array, g: Array, lr: float) -> Array:
        return self.lamb.step(w, g, lr) - lr * self.decay * w


REFERENCES: dict[str, Callable[[Array, float], Any]] = {
    "sgd": Sgd64,
    "lars": Lars64,
    "lamb": Lamb64,
    "adamw": AdamW64,
}
