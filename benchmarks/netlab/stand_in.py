"""A model that takes as long as on a device, without one: real parameters, a sleep per layer."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from hvdtrain.config.schema import Model
from hvdtrain.models import build_model

FORWARD_SHARE = 1 / 3
"""Share of the forward pass in a step: the backward pass computes twice as many products."""


class _Device:
    """Simulated device: like a GPU, it computes layer after layer even while the host is late."""

    def __init__(self) -> None:
        self.due: float | None = None
        """Time when all layers requested in this pass will be done; None between passes."""

    def wait(self, seconds: float) -> None:
        """Sleep until the device has computed for `seconds` more."""
        self.due = (self.due or time.perf_counter()) + seconds
        left = self.due - time.perf_counter()
        if left > 0:
            time.sleep(left)


class _Layer(torch.autograd.Function):
    """Sleeps and returns its input; every parameter gets a gradient of ones."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, device: _Device, seconds: float, *params: torch.Tensor
    ) -> torch.Tensor:
        ctx.device, ctx.seconds, ctx.params = device, seconds, params
        device.wait(seconds * FORWARD_SHARE)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        ctx.device.wait(ctx.seconds * (1 - FORWARD_SHARE))
        return grads[0], None, None, *[torch.ones_like(p) for p in ctx.params]


class StandIn(nn.Module):
    """The parameters of model `name` in the order of its layers; a step takes `compute_s` seconds.

    It also has the model's buffers, which DDP sends to all ranks before every forward pass.
    A layer's share of the time is its share of the multiplications at 224 px, counted from shapes.
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
        self.device = _Device()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [1]: any number that requires a gradient."""
        self.device.due = None
        for seconds, params in zip(self.seconds, self.layers, strict=True):
            x = _Layer.apply(x, self.device, seconds, *params)
        self.device.due = None
        return x


def _multiplications(model: nn.Module, layers: list[nn.Module]) -> list[float]:
    """Multiplications in each layer for one image: a weight is used once per output position."""
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
