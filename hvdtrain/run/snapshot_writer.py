"""What checkpoints are made with: memory for a copy of the state, and a thread that writes it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

import torch

from hvdtrain.engine.checkpoint import Saved, Tensors
from hvdtrain.run.guard.numbers import all_finite


class Writer:
    """Runs one job at a time in a thread, which training may go on beside."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._saved: Saved | None = None
        self._error: BaseException | None = None
        self.seconds = 0.0
        """Of the last job."""

    def start(self, write: Callable[[], Saved], *, urgent: bool = False) -> None:
        """Begin a job, of low priority unless it is `urgent`; the one before has been taken."""
        self._thread = threading.Thread(
            target=self._run, args=(write, urgent), name="hvdtrain-checkpoint", daemon=True
        )
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a job is being run."""
        return self._thread is not None and self._thread.is_alive()

    def take(self, timeout_s: float | None = 0) -> Saved | None:
        """The result of the job, once; None if there is none within the time (None: for ever).

        Raises what the job has raised.
        """
        if self._thread is None:
            return None
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return None
        self._thread = None
        saved, error = self._saved, self._error
        self._saved = self._error = None
        if error is not None:
            raise error
        return saved

    def _run(self, write: Callable[[], Saved], urgent: bool) -> None:
        if not urgent:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        began = time.perf_counter()
        try:
            self._saved = write()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread of the loop
            self._error = error
        self.seconds = time.perf_counter() - began


class Buffers:
    """Memory for a copy of the state, kept from one checkpoint to the next; pinned for a GPU."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], torch.Tensor] = {}
        self.finite = False
        """Whether the last copy is known to be finite; its tensors on a GPU are not looked at."""

    def copy(self, files: Tensors) -> Tensors:
        """The same tensors on the CPU, until the next call."""
        copies: Tensors = {}
        on_gpu = False
        sums: list[torch.Tensor] = []
        for file, tensors in files.items():
            copies[file] = {}
            for name, tensor in tensors.items():
                kept = self._kept.get((file, name))
                if kept is None:
                    pinned = tensor.is_cuda
                    # The same layout: another would take three times as long to copy.
                    kept = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
                    self._kept[file, name] = kept
                copies[file][name] = kept.copy_(tensor, non_blocking=True)
                on_gpu |= tensor.is_cuda
                if not on_gpu and kept.is_floating_point():
                    sums.append(kept.sum().double())  # at once, while it is in the cache
        if on_gpu:
            torch.cuda.synchronize()
        self.finite = not on_gpu and all_finite(sums)
        return copies
