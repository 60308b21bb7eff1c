"""Groups of gradients are sent in the same order on all ranks, whichever of them is complete first."""

from __future__ import annotations

import torch
from torch import nn

from hvdtrain.comm.ranks import Handle, Solo
from hvdtrain.engine.reducer import Reducer


class Recording(Solo):
    """One of two ranks, which notes the names of its sums."""

    size = 2

    def __init__(self) -> None:
        self.names: list[str] = []

    def sum_async_(self, tensor: torch.Tensor, name: str) -> Handle:
        self.names.append(name)
        return super().sum_async_(tensor, name)


def sent(first: int, frozen: int | None = None) -> tuple[list[str], int]:
    """Names of the sums of a step, and how many were sent before the end of the backward pass, of three layers
    of which number `first` gets its gradient last."""
    layers = [nn.Linear(4, 4, bias=False) for _ in range(3)]
    comm = Recording()
    reducer = Reducer([layer.weight for layer in layers], comm, group_bytes=1.0)
    assert len(reducer.groups) == 3
    if frozen is not None:
        layers[frozen].weight.requires_grad_(False)
    x = torch.ones(1, 4)
    for layer in [layers[first], *(layer for layer in layers if layer is not layers[first])]:
        x = layer(x)
    reducer.start_step()
    reducer.start_backward()
    x.sum().backward()
    reducer.end_backward()
    early = len(comm.names)
    reducer.finish()
    return comm.names, early


def test_every_order_of_gradients_leads_to_one_order_of_sums() -> None:
    expected = ["grad.0", "grad.1", "grad.2"]
    assert sent(first=0) == (expected, 3)  # the last layer's gradient is the first
    assert sent(first=2) == (expected, 3)
    assert sent(first=1) == (expected, 3)


def test_frozen_parameters_hold_up_no_sum() -> None:
    assert sent(first=0, frozen=2) == (["grad.0", "grad.1", "grad.2"], 3)
    assert sent(first=1, frozen=0) == (["grad.0", "grad.1", "grad.2"], 3)
