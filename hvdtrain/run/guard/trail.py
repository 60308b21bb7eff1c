"""The steps since the last report: where a loss was first not finite, and with which images."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from hvdtrain.comm.ranks import Comm

KEPT = 1000
"""Most steps that are kept."""
NAMED = 4
"""Most images that a line names."""


class Trail:
    """The last steps of this rank. Nothing here waits for the device before `first_fault`."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, np.ndarray, torch.Tensor]] = deque(maxlen=KEPT)

    def add(self, step: int, samples: np.ndarray, sums: torch.Tensor) -> None:
        """Update number `step`, the ids of its images on this rank, and its SUMS [4], loss first."""
        self._steps.append((step, samples, sums))

    def clear(self) -> None:
        """Forget all steps: they were fine."""
        self._steps.clear()

    def first_fault(self, comm: Comm, name: Callable[[int], str]) -> str:
        """Where the loss of some rank was first not finite, and the images that it was of: the end of
        a sentence, empty if there was no such step. `name`: of a sample. Every rank must call it."""
        mine: tuple[int, list[str], int] | None = None
        for step, samples, sums in self._steps:
            if not sums[0].isfinite():
                mine = (step, [name(int(i)) for i in samples[:NAMED]], len(samples))
                break
        found = [json.loads(text) for text in comm.gather_text(json.dumps(mine))]
        faults = {rank: each for rank, each in enumerate(found) if each is not None}
        if not faults:
            return ""
        first = min(step for step, *_ in faults.values())
        odd = [rank for rank, (step, *_) in faults.items() if step == first]
        if 1 < len(odd) == comm.size:
            return f"; first in step {first}, on all ranks at once, so not because of some image"
        _, names, count = faults[odd[0]]
        more = f" and {count - len(names)} more" if count > len(names) else ""
        where = f" on rank {odd[0]}" if comm.size > 1 else ""
        return f"; first in step {first}{where}, with the images {', '.join(names)}{more}"
