"""Numbers that the changes of a batch need on its device, copied there at once.

A copy from ordinary memory makes the host wait for a GPU, and a batch may need thirty arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import torch

_ALIGN = 16
"""Bytes; a tensor must begin at a multiple of its elements' size."""


class Numbers:
    """Arrays of the host; after `send` they are tensors on the device."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._sent: list[torch.Tensor] = []

    def add(self, values: np.ndarray) -> Callable[[], torch.Tensor]:
        """Note an array of any shape; the result, called after `send`, is its tensor."""
        number = len(self._arrays)
        self._arrays.append(np.ascontiguousarray(values))
        return lambda: self._sent[number]

    def add_float(self, values: np.ndarray) -> Callable[[], torch.Tensor]:
        """The same, rounded to fp32."""
        return self.add(np.asarray(values, dtype=np.float32))

    def send(self, device: torch.device) -> None:
        """Copy all arrays, in one copy that nothing waits for."""
        if device.type == "cpu":
            self._sent = [torch.from_numpy(array) for array in self._arrays]
        elif self._arrays:
            host = packed(self._arrays, pinned=device.type == "cuda")
            self._sent = unpacked(host.to(device, non_blocking=True), self._arrays)


def copied_to(device: torch.device, *arrays: np.ndarray) -> list[torch.Tensor]:
    """The arrays as tensors on `device`, by one copy that nothing waits for."""
    numbers = Numbers()
    tensors = [numbers.add(array) for array in arrays]
    numbers.send(device)
    return [tensor() for tensor in tensors]


def packed(arrays: Sequence[np.ndarray], *, pinned: bool) -> torch.Tensor:
    """The bytes of all arrays in one buffer, uint8 [bytes]."""
    starts = _starts(arrays)
    buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pinned)
    for start, array in zip(starts, arrays, strict=False):
        buffer.numpy()[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    return buffer


def unpacked(buffer: torch.Tensor, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Views of what `packed` made of `arrays`, with their types and shapes."""
    types = [torch.from_numpy(array).dtype for array in arrays]
    return [
        buffer[start : start + array.nbytes].view(kind).view(array.shape)
        for start, array, kind in zip(_starts(arrays), arrays, types, strict=False)
    ]


def _starts(arrays: Sequence[np.ndarray]) -> list[int]:
    """Where each array begins, and the length of all, in bytes."""
    lengths = (-(-array.nbytes // _ALIGN) * _ALIGN for array in arrays)
    return list(accumulate(lengths, initial=0))
