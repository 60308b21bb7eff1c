"""The steps since the last report: where a loss was first too high, and with which images."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from hvdtrain.comm.ranks import Comm

KEPT = 1000
"""Most steps that are kept."""
NAMED = 4
"""Most images that a line names."""


class _Step(NamedTuple):
    number: int
    samples: np.ndarray
    sums: torch.Tensor


class Trail:
    """The last steps of this rank. Only `losses`, `first_fault` and `images_of` wait for the device."""

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque(maxlen=KEPT)
        self._reported = 0

    def add(self, step: int, samples: np.ndarray, sums: torch.Tensor) -> None:
        """Update number `step`, the ids of its images on this rank, and its SUMS [4], loss first."""
        self._steps.append(_Step(step, samples, sums))

    def clear(self, keep: int = 0) -> None:
        """All steps were reported, and but for the last `keep` they were fine."""
        if self._steps:
            self._reported = self._steps[-1].number
        for _ in range(len(self._steps) - keep):
            self._steps.popleft()

    def losses(self) -> torch.Tensor:
        """Loss and images of each step since the last report, summed over this rank: float64 [2 * steps]
        on the CPU."""
        new = [step.sums for step in self._steps if step.number > self._reported]
        if not new:
            return torch.zeros(0, dtype=torch.float64)
        return torch.stack(new)[:, [0, -1]].cpu().double().flatten()

    def first_fault(self, comm: Comm, name: Callable[[int], str]) -> str:
        """Where the loss of some rank was first not finite, and the images that it was of: the end of
        a sentence, empty if there was no such step. `name`: of a sample. Every rank must call it."""
        step = next((step for step in self._steps if not step.sums[0].isfinite()), None)
        found = _gathered(comm, step, 0.0, name)
        if not found:
            return ""
        first = min(each.step for each in found)
        odd = [each for each in found if each.step == first]
        if 1 < len(odd) == comm.size:
            return f"; first in step {first}, on all ranks at once, so not because of some image"
        return f"; first in step {first}{odd[0].text(comm)}"

    def images_of(self, number: int, comm: Comm, name: Callable[[int], str]) -> str:
        """The images of step `number`, of the rank where its loss was highest: the end of a sentence.
        Every rank must call it."""
        step = next((step for step in self._steps if step.number == number), None)
        loss = 0.0
        if step is not None:
            total, images = step.sums[[0, -1]].tolist()
            loss = total / images if images else 0.0
        found = _gathered(comm, step, loss, name)
        if not found:
            return ""
        worst = max(found, key=lambda each: each.loss)
        return f"; it began in step {number}{worst.text(comm, ', where it was highest,')}"


class _Found(NamedTuple):
    """A step of one rank."""

    rank: int
    step: int
    loss: float
    names: Sequence[str]
    images: int

    def text(self, comm: Comm, about: str = ",") -> str:
        """The rank and its images."""
        more = f" and {self.images - len(self.names)} more" if self.images > len(self.names) else ""
        where = f" on rank {self.rank}{about}" if comm.size > 1 else ","
        return f"{where} with the images {', '.join(self.names)}{more}"


def _gathered(
    comm: Comm, step: _Step | None, loss: float, name: Callable[[int], str]
) -> list[_Found]:
    """The steps of all ranks that have one."""
    mine = None
    if step is not None:
        names = [name(int(i)) for i in islice(step.samples, NAMED)]
        mine = (step.number, loss, names, len(step.samples))
    texts = enumerate(comm.gather_text(json.dumps(mine)))
    return [_Found(rank, *found) for rank, text in texts if (found := json.loads(text))]
