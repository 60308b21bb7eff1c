"""A model that takes the time of a device without one: real parameters, timed sleeps per layer."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from hvdtrain.config.schema import Model
from hvdtrain.models import build_model

FORWARD_SHARE = 1 / 3
"""Of the time of a step: the backward pass computes two products for each of the forward's."""


class _Device:
    """Computes one layer after the other, whether or not the host is late, as a GPU does."""

    def __init__(self) -> None:
        self.due: float | None = None
        """When it has computed all of this pass that was asked for; None between passes."""

    def wait(self, seconds: float) -> None:
        """Until it has computed for so many seconds more."""
        self.due = (self.due or time.perf_counter()) + seconds
        left = self.due - time.perf_counter()
        if left > 0:
            time.sleep(left)


class _Layer(torch.autograd.Function):
    """Passes its input on, and sleeps; every parameter gets a gradient of ones."""

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
        self.device = _Device()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [1], any number that needs a gradient."""
        self.device.due = None
        for seconds, params in zip(self.seconds, self.layers, strict=True):
            x = _Layer.apply(x, self.device, seconds, *params)
        self.device.due = None
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
