"""A model that takes the time of a device without one: real parameters, timed sleeps per layer."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from hvdtrain.config import Model
from hvdtrain.models import build_model

FORWARD_SHARE = 1 / 3
"""Of the time of a step: the backward pass computes two products for each of the forward's."""


class _Layer(torch.autograd.Function):
    """Passes its input on, and sleeps; every parameter gets a gradient of ones."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seconds: float, *params: torch.Tensor) -> torch.Tensor:
        ctx.seconds, ctx.params = seconds, params
        _sleep(seconds * FORWARD_SHARE)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        _sleep(ctx.seconds * (1 - FORWARD_SHARE))
        return grads[0], None, *[torch.ones_like(p) for p in ctx.params]


class StandIn(nn.Module):
    """The parameters of a model in its order of layers; a step of it takes `compute_s` seconds.

    It has the model's buffers, too, which DDP sends to all ranks before every forward pass.
    Layers share the time by their multiplications at 224 px, as counted on shapes alone.
    """

    def __init__(self, name: str, compute_s: float) -> None:
        super().__init__()
        model = build_model(Model(name=name), 1000)
        layers = [m for m in model.modules() if list(m.parameters(recurse=False))]
        self.layers = nn.ModuleList(
            nn.ParameterList(p.detach().clone() for p in m.parameters(recurse=False))
            for m in layers
        )
        for number, buffer in enumerate(model.buffers()):
            self.register_buffer(f"buffer{number}", buffer.clone())
        work = _multiplications(model, layers)
        self.seconds = [compute_s * each / sum(work) for each in work]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [1], any number that needs a gradient."""
        for seconds, params in zip(self.seconds, self.layers, strict=True):
            x = _Layer.apply(x, seconds, *params)
        return x


def _multiplications(model: nn.Module, layers: list[nn.Module]) -> list[float]:
    """Of one image in each layer: a weight is used once per position of the output."""
    counts = dict.fromkeys(layers, 0.0)

    def count(layer: nn.Module, _: Any, out: torch.Tensor) -> None:
        positions = out.shape[2:].numel() if out.ndim == 4 else 1
        counts[layer] = float(sum(p.numel() for p in layer.parameters(recurse=False)) * positions)

    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model.to("meta").eval()(torch.empty(1, 3, 224, 224, device="meta"))
    for handle in handles:
        handle.remove()
    return [counts[layer] for layer in layers]


def _sleep(seconds: float) -> None:
    """To the microsecond or so; a plain sleep is up to 0.1 ms late in each of a hundred layers."""
    until = time.perf_counter() + seconds
    if seconds > 2e-4:
        time.sleep(seconds - 1e-4)
    while time.perf_counter() < until:
        time.sleep(0)
