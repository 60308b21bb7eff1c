"""Training windows on the CPU: decoded by DALI, resized and normalised by torch.

torch resizes 8-bit images with vector instructions: 4 to 6 times as fast as DALI's CPU operator,
and within one level of PIL, borders included. `docs/explanation/loader-speed.md` has the figures. On a GPU
DALI runs the whole graph instead.
"""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pipelines.images.decoder import Decoder
from pipelines.images.graphs import decoded_window
from pipelines.images.recipes import FILTERS


class WindowDecoder(Decoder):
    """Does on the CPU what the graph "window" does: from the same inputs it makes the same images,
    within two levels of 255 except at the outermost pixels."""

    _pool: ThreadPoolExecutor | None = None

    def reset(self) -> None:
        """Drop the pipeline with its threads, and all batches that were submitted to it."""
        super().reset()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _outputs(self, decode: str) -> tuple[Any, ...]:
        self._shift = (255 * np.array(self._mean)).astype(np.float32)  # rounded once, as DALI does
        self._scale = (1 / (255 * np.array(self._std))).astype(np.float32)
        self._buffers = Buffers()
        self._pool = single_threaded_workers(self._threads)
        return decoded_window(decode)

    def _images(self, outputs: Any) -> torch.Tensor:
        windows, size, mirror, filters = outputs
        count = len(windows)
        height, width = np.asarray(size[0]).tolist()
        images = self._buffers.take((count, height, width, 3))
        mirrored = mirror.as_array()
        mode = FILTERS[int(np.asarray(filters[0]))]
        shift = torch.from_numpy(np.tile(self._shift, width))
        scale = torch.from_numpy(np.tile(self._scale, width))

        def finish(places: range) -> None:
            for k in places:
                pixels = torch.from_numpy(np.asarray(windows[k]))
                if pixels.shape != (height, width, 3):
                    pixels = resize(pixels, height, width, mode)
                if mirrored[k]:
                    pixels = pixels.flip(1)
                rows = images[k].view(height, width * 3)
                rows.copy_(pixels.view(height, width * 3)).sub_(shift).mul_(scale)

        assert self._pool is not None
        shares = [range(first, count, self._threads) for first in range(self._threads)]
        for _done in self._pool.map(finish, shares):
            pass
        return images.permute(0, 3, 1, 2)


def resize(pixels: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """[H, W, 3] uint8 to [height, width, 3] uint8; `mode`: of FILTERS, widened by the reduction."""
    planes = pixels[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(
        planes, size=(height, width), mode=mode, antialias=True, align_corners=False
    )
    return resized.permute(0, 2, 3, 1)[0].contiguous()


class Buffers:
    """Reuses the memory of images: large new blocks cost page faults every time."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A float32 tensor, whose memory is used again once nothing refers to it or a view of it."""
        if shape != self._shape:
            self._free.clear()  # memory still in use returns to this list, which nothing reads then
            self._shape, self._free = shape, []
        memory = self._free.pop() if self._free else np.empty(shape, dtype=np.float32)
        held = memory.view()  # what the tensor's storage keeps alive
        weakref.finalize(held, self._free.append, memory)
        return torch.from_numpy(held)


def single_threaded_workers(count: int) -> ThreadPoolExecutor:
    """Threads in which torch's operators start no further threads."""
    before = torch.get_num_threads()
    ready = threading.Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # sets the default for this thread, which happens only once
        torch.set_num_threads(1)  # for this thread, and as the default of threads to come
        ready.wait()

    pool = ThreadPoolExecutor(count, "hvdtrain-resize", initializer=start)
    for _ in range(count):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(before)
    return pool
