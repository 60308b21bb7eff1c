"""Exposed communication of a loop that is not ours, measured by hooks on its model.

DistributedDataParallel waits for the network at two places. At the end of a backward pass it waits for
the sums of the gradients: in a callback of autograd, which runs once all gradients are computed. One
callback queued before it and one behind it measure that wait, whatever communication hook the model has.
And before a forward pass it takes the buffers of rank 0, such as those of batch norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hvdtrain.engine.stopwatch import StepClock

MOST_OUTPUTS = 16
"""Tensors of a model's output that are looked at for the start of the backward pass."""


class WatchedExchange:
    """The parts of a step of `model` on one rank; nothing here waits for the device.

    Without a model, or with one that exchanges nothing, only what `clock` is told counts.
    """

    def __init__(self, model: nn.Module | None, device: torch.device) -> None:
        self.clock = StepClock(device)
        self.bytes_sent = 0
        """Bytes of gradients that were summed, before any compression by a hook of the model."""
        self.calls = 0
        """Always 0: torch does not say how many sums it makes."""
        self.backward_passes = 0
        self._in_backward = self._syncing = False
        self._hooks: list[Any] = []
        inner = getattr(model, "_orig_mod", model)
        self._ddp = inner if isinstance(inner, DistributedDataParallel) else None
        if model is None:
            return
        self._hooks.append(model.register_forward_pre_hook(self._before_forward))
        self._hooks.append(model.register_forward_hook(self._after_forward))
        # Hooks within a compiled model would be compiled.
        self._sees_buffers = self._ddp is not None and inner is model
        if self._ddp is not None and self._sees_buffers:
            self._hooks.append(self._ddp.module.register_forward_pre_hook(self._buffers_arrived))
        trained = [p for p in model.parameters() if p.requires_grad] if self._ddp else []
        self._bytes = sum(p.numel() * p.element_size() for p in trained)

    @property
    def is_ddp(self) -> bool:
        """Whether the waits of the model are measured."""
        return self._ddp is not None

    def close(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()

    def end_step(self) -> None:
        """End the lap of a step, which has had any number of waits."""
        self.clock.waiting.start()
        self.clock.waiting.stop()

    def _before_forward(self, _module: nn.Module, _inputs: Any) -> None:
        if not torch.is_grad_enabled():
            return
        self._in_backward = False
        if self._ddp and self._sees_buffers and self._ddp.will_sync_module_buffers():
            self._syncing = True
            self.clock.waiting.start()
        else:
            self.clock.forward.start()

    def _buffers_arrived(self, _module: nn.Module, _inputs: Any) -> None:
        if self._syncing:
            self._syncing = False
            self.clock.waiting.stop(pause=True)
            self.clock.forward.start()

    def _after_forward(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        self.clock.forward.stop()
        for tensor, _ in zip(_tensors(output), range(MOST_OUTPUTS), strict=False):
            if tensor.requires_grad:
                tensor.register_hook(self._backward_begins)

    def _backward_begins(self, _gradient: torch.Tensor) -> None:
        if not self._in_backward:
            self._in_backward = True
            self.clock.backward.start()
            _queue(self._computed)

    def _computed(self) -> None:
        self.clock.backward.stop()
        self.clock.waiting.start()
        _queue(self._arrived)

    def _arrived(self) -> None:
        self.clock.waiting.stop(pause=True)
        self._in_backward = False
        self.backward_passes += 1
        if self._ddp is not None and self._ddp.require_backward_grad_sync:
            self.bytes_sent += self._bytes


def _queue(callback: Callable[[], None]) -> None:
    """Have autograd call this after the backward pass, behind what was queued before.

    Those that are queued meanwhile are called as well. Source: torch, csrc/autograd/engine.cpp
    """
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """The tensors of a model's output: one, or a tuple, list or mapping of them."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
