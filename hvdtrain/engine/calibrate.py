"""The speed of a single worker, which scaling efficiency is measured against."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from hvdtrain.engine.checkpoint_errors import kept_tensors
from hvdtrain.engine.global_norm import local_statistics
from hvdtrain.engine.mixing import Batch
from hvdtrain.engine.noise_meter import NoiseMeter
from hvdtrain.engine.step import State, average, backward, update
from hvdtrain.engine.stopwatch import StepClock
from hvdtrain.optim import optimizer_tensors
from hvdtrain.optim.muon import alone


class WorkerSpeed(NamedTuple):
    """Speed of one worker without communication."""

    images_per_second: float
    backward_s: float
    """Time of the last backward pass of an update, in which gradients can be sent."""


def calibrate(state: State, batch: Batch, *, min_steps: int = 6, min_s: float = 0.5) -> WorkerSpeed:
    """Time the same update without communication, on the given batch.

    All ranks calibrate at the same time, so the result includes what they share of a machine.
    Takes the median of at least `min_steps` updates and `min_s` seconds; the first, which allocates
    memory and selects kernels, does not count. Afterwards the state is as it was before.
    """
    # Queue several as training does, so that a GPU does not wait for the host.
    updates = 4 if state.settings.device.type == "cuda" else 1
    times: list[float] = []
    first_s = 0.0
    with restored(state), local_statistics(state.norms), alone(state.optimizer):
        clock = state.reducer.clock.backward
        while len(times) <= min_steps or sum(times[1:]) * updates < min_s:
            began = time.perf_counter()
            for _ in range(updates):
                state.reducer.start_step(communicate=False)
                backward(state, batch)
                update(state)
                average(state)
            _synchronize(state.settings.device)
            times.append((time.perf_counter() - began) / updates)
            if len(times) == 1:
                first_s = clock.total_s
        passes = (len(times) - 1) * updates * state.reducer.accumulate
        backward_s = (clock.total_s - first_s) / passes
    return WorkerSpeed(len(batch.labels) / statistics.median(times[1:]), backward_s)


@contextlib.contextmanager
def restored(state: State) -> Iterator[None]:
    """A context that restores at its end all that training changes: weights, buffers, optimizer
    state, loss scale, averages, errors of PowerSGD, random state and progress. Inside it the noise scale is not
    measured, and times go to a separate clock."""
    tensors = [*state.model.state_dict().values()]
    tensors += optimizer_tensors(state.model, state.optimizer).values()
    tensors += state.ema.tensors.values() if state.ema is not None else ()
    tensors += kept_tensors(state).values()
    saved = [tensor.clone() for tensor in tensors]
    scaler: dict[str, Any] = state.scaler.state_dict()
    rng = torch.get_rng_state()
    cuda = (
        torch.cuda.get_rng_state(state.settings.device)
        if state.settings.device.type == "cuda"
        else None
    )
    noise, state.noise = state.noise, NoiseMeter(every=0, parts=1)
    clock, state.reducer.clock = state.reducer.clock, StepClock(state.settings.device)
    progress, skipped = state.progress, state.skipped
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
        state.scaler.load_state_dict(scaler)
        torch.set_rng_state(rng)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, state.settings.device)
        state.noise = noise
        state.reducer.clock = clock
        state.progress, state.skipped = progress, skipped


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
