"""The batches of a watched loop: the time until a loader has each, and how far the loop is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch

from hvdtrain.engine.step import SUMS
from hvdtrain.errors import ConfigError

T = TypeVar("T")


class Passes:
    """How often the loop has gone through its data, and how far it is in the present pass."""

    def __init__(self, steps_per_epoch: int | None) -> None:
        self.begun = 0
        self.waited_s = 0.0
        """Seconds that this rank has waited for batches so far."""
        self.image_size = 0
        """Side of the images, 0 if the batches are no images."""
        self._length = steps_per_epoch
        self._batches = 0

    def begin(self, batches: int | None) -> None:
        """Begin a pass over so many batches. Raises ConfigError if their number is not known."""
        self._length = self._length if batches is None else batches
        if self._length is None:
            raise ConfigError(
                "watch.data: the loader has no length: watch.start needs steps_per_epoch for it"
            )
        self.begun += 1
        self._batches = 0

    def take(self, batch: Any, waited_s: float) -> None:
        """Count a batch, which the loop has waited for."""
        if self._batches == 0:
            self.image_size = _side(batch)
        self._batches += 1
        self.waited_s += waited_s

    def require_length(self) -> None:
        """Raises ConfigError if nothing tells how long an epoch is."""
        if self._length is None:
            raise ConfigError("watch.step: without watch.data, watch.start needs steps_per_epoch")

    def epoch(self, steps: int) -> float:
        """Epochs done, with the fraction of the present one."""
        length = self._length or 1
        if not self.begun:
            return steps / length
        return self.begun - 1 + min(1.0, self._batches / length)


class StepSums:
    """SUMS [4] of a step, float64 on the device; a loss on a GPU is not waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counts: dict[int, torch.Tensor] = {}

    def of(self, loss: torch.Tensor | float | None, samples: int) -> torch.Tensor:
        """`loss`: mean over the samples; hits are not known, and 0."""
        counts = self._counts.get(samples)
        if counts is None:
            counts = torch.tensor([0.0] * (len(SUMS) - 1) + [samples], dtype=torch.float64)
            counts = self._counts[samples] = counts.to(self._device)
        if loss is None:
            return counts
        sums = counts.clone()
        sums[0] = (loss.detach() if isinstance(loss, torch.Tensor) else loss) * samples
        return sums


class WatchedData(Generic[T]):
    """The batches of a loader, as `Watch.data` gives them. Other attributes are those of the loader."""

    def __init__(self, loader: Iterable[T], passes: Passes, restart: Callable[[], object]) -> None:
        """`restart` begins a step anew."""
        self._loader, self._passes, self._restart = loader, passes, restart

    def __iter__(self) -> Iterator[T]:
        """One epoch."""
        self._passes.begin(_length(self._loader))
        self._restart()
        began = time.perf_counter()
        for batch in self._loader:
            self._passes.take(batch, time.perf_counter() - began)
            yield batch
            began = time.perf_counter()

    def __len__(self) -> int:
        """Batches of an epoch. Raises TypeError if the loader does not know."""
        return len(self._loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        """What the loader has, as `sampler` or `dataset`."""
        if name.startswith("__") or name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)


def _length(loader: object) -> int | None:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def _side(batch: Any) -> int:
    """The side of the images of a batch [N,C,H,W], or of its first part; 0 if they are none."""
    batch = getattr(batch, "images", batch)
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    return int(first.shape[-1]) if isinstance(first, torch.Tensor) and first.ndim == 4 else 0
