"""Runs a DALI pipeline, batch by batch, from one thread."""

from __future__ import annotations

import re
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline
from torch.utils.dlpack import from_dlpack

from hvdtrain.errors import is_out_of_memory
from pipelines.bad import PIXEL, PIXEL_SIZE
from pipelines.images.graphs import GRAPHS
from pipelines.images.recipes import Inputs, Recipe

DEPTH = 2
"""Batches that DALI works on at once: idle threads start the next one while one batch ends."""


class DecodeError(Exception):
    """A batch could not be decoded; the message is DALI's reason in one line."""

    def __init__(self, error: RuntimeError) -> None:
        text = str(error)
        match = re.search(
            r"encountered:\s*(.*?)\s*(?:C\+\+ context|Current pipeline|$)", text, re.DOTALL
        )
        super().__init__(" ".join((match.group(1) if match else text).split())[:300])
        numbered = re.search(r"sample #(\d+)", text)
        self.sample = int(numbered.group(1)) if numbered else None
        """Position in the batch of the sample that DALI names; None if it names none."""


def decode_fault(error: RuntimeError) -> DecodeError | MemoryError:
    """The error for what DALI raised; lacking memory is no fault of an image."""
    return MemoryError(str(error)) if is_out_of_memory(error) else DecodeError(error)


class Decoder:
    """Runs the graph of `recipe`: `submit` batches, and take their images in order by `result`.

    At most `DEPTH` batches may be submitted and not taken yet. Any batch size works: for a batch
    larger than all before the pipeline is built again (about 0.05 s). After DecodeError all
    batches that were not taken yet are lost, and the decoder can be used again.
    """

    def __init__(
        self,
        recipe: Recipe,
        mean: list[float],
        std: list[float],
        threads: int,
        device: torch.device,
    ) -> None:
        self._recipe = recipe
        self._mean, self._std = mean, std
        self._threads = threads
        self._device = device
        self._pipeline: Pipeline | None = None
        self._largest = 1
        self._kept: deque[list[np.ndarray]] = deque()  # DALI reads these without a copy

    def fits(self, batch: int) -> bool:
        """Whether a batch of this size can be submitted without building the pipeline again."""
        return self._pipeline is not None and batch <= self._largest

    def submit(self, encoded: list[np.ndarray], inputs: Inputs) -> None:
        """Start to decode one batch: `encoded` [N] arrays of bytes, and the graph's other inputs."""
        if not self.fits(len(encoded)):
            self._build(max(len(encoded), self._largest))
        assert self._pipeline is not None
        self._kept.append(encoded)
        try:
            _feed(self._pipeline, encoded, inputs)
            self._pipeline.schedule_run()
        except RuntimeError as error:  # about this batch, or an earlier one
            self.reset()
            raise decode_fault(error) from None

    def result(self) -> torch.Tensor:
        """The images of the oldest batch not taken yet: [N, 3, S, S] float32 on the device, a view
        of channels_last memory that stays valid as long as it is referenced."""
        assert self._pipeline is not None
        try:
            outputs = self._pipeline.outputs()
        except RuntimeError as error:
            self.reset()
            raise decode_fault(error) from None
        self._kept.popleft()
        return self._images(outputs)

    def drain(self) -> None:
        """Drop all batches that were submitted and not taken."""
        with suppress(DecodeError):  # after which none is left
            while self._kept:
                self.result()

    def reset(self) -> None:
        """Drop the pipeline with its threads, and all batches that were submitted to it."""
        if self._pipeline is not None:
            # Reference cycles inside would keep it alive until the next garbage collection.
            self._pipeline.__del__()
            self._pipeline = None
        self._kept.clear()

    def _build(self, batch: int) -> None:
        if self._kept:
            raise RuntimeError("a larger batch was submitted while others are decoded")
        self.reset()
        on_gpu = self._device.type == "cuda"
        pipeline = Pipeline(
            batch_size=batch,
            num_threads=self._threads,
            device_id=self._device.index if on_gpu else None,
            prefetch_queue_depth=DEPTH,
        )
        with pipeline:
            pipeline.set_outputs(*self._outputs("mixed" if on_gpu else "cpu"))
        pipeline.build()
        self._prime(pipeline)
        self._pipeline, self._largest = pipeline, batch

    def _outputs(self, decode: str) -> tuple[Any, ...]:
        """The outputs of the graph."""
        return (GRAPHS[self._recipe.graph](decode, self._mean, self._std),)

    def _images(self, outputs: Any) -> torch.Tensor:
        """The images of a batch, from the outputs of the graph."""
        return from_dlpack(outputs[0].as_tensor()).permute(0, 3, 1, 2)

    def _prime(self, pipeline: Pipeline) -> None:
        """Run single pixels: DALI's first `schedule_run` starts DEPTH runs at once."""
        inputs = self._recipe.inputs(np.zeros(1, dtype=np.int64), np.array([PIXEL_SIZE]))
        for _ in range(DEPTH):
            _feed(pipeline, [PIXEL], inputs)
        pipeline.schedule_run()
        for _ in range(DEPTH):
            pipeline.outputs()


def _feed(pipeline: Pipeline, encoded: list[np.ndarray], inputs: Inputs) -> None:
    pipeline.feed_input("encoded", encoded)
    for name, values in inputs.items():
        pipeline.feed_input(name, np.ascontiguousarray(values))
