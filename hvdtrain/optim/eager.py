"""torch's optimizers without the import of its compiler.

The decorators in torch's `Optimizer`, `SGD` and `AdamW` import `torch._dynamo` at the first use, in case
that torch.compile reads them. Nothing here is compiled, and that import takes a second of processor time at
the start of every rank. What the decorators wrap is the same code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch


def _plain(decorated: Callable[..., Any]) -> Any:
    return inspect.unwrap(decorated)


class Eager(torch.optim.Optimizer):
    """The methods that all optimizers have."""

    add_param_group = _plain(torch.optim.Optimizer.add_param_group)
    zero_grad = _plain(torch.optim.Optimizer.zero_grad)
    state_dict = _plain(torch.optim.Optimizer.state_dict)
    load_state_dict = _plain(torch.optim.Optimizer.load_state_dict)


class SGD(Eager, torch.optim.SGD):
    """torch's SGD."""

    step = torch.no_grad()(_plain(torch.optim.SGD.step))


class AdamW(Eager, torch.optim.AdamW):
    """torch's AdamW."""

    step = torch.no_grad()(_plain(torch.optim.AdamW.step))
