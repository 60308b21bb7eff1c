"""Measures for the scaling predictor: the speed of one worker at each image size of the plan, and
when in the backward pass each group of gradients is ready."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hvdtrain import activity
from hvdtrain.analysis.largest_batch import noise
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config
from hvdtrain.engine.build import choose_device, compile_if_asked, init_state
from hvdtrain.engine.calibrate import WorkerSpeed, calibrate
from hvdtrain.engine.compression.low_rank import matrix_shape
from hvdtrain.engine.step import State
from hvdtrain.engine.teacher import load_teacher
from hvdtrain.errors import ConfigError
from hvdtrain.files import write_atomically
from hvdtrain.run.efficiency import about


def calibrate_plan(cfg: Config, comm: Comm) -> dict[str, Any]:
    """The content of a calibration.json: that of a run, and the gradients besides.

    Images are noise. All ranks measure at the same time, so the speed includes what they share of
    a machine. The (lower) median of their speeds counts, and the times of release on rank 0.
    `groups`: bytes of the reducer's groups in fp32; `release_s` of each entry: seconds from the
    start of the last micro-batch's backward pass until each group is ready.
    Raises ConfigError without model.num_classes and expected.classes.
    """
    classes = cfg.planned_classes
    if classes is None:
        raise ConfigError("model.num_classes: not set: the size of the classifier depends on it")
    device = choose_device(comm)
    state = init_state(cfg, comm, device, classes)
    state.teacher = load_teacher(cfg, comm, device, classes, None)
    compile_if_asked(state, cfg)
    settings = {
        (phase.image_size_at(epoch), phase.batch_per_worker * cfg.train.accumulate)
        for phase in cfg.phases
        for epoch in range(phase.epochs)
    }
    entries = []
    for done, (image_size, batch) in enumerate(sorted(settings)):
        activity.enter(f"calibrating: {batch} images of {image_size} px", len(settings), "settings")
        activity.step(done)
        comm.sum_(torch.zeros(1), "calibrate.start")  # all ranks at the same time
        images = noise(state, batch, image_size, classes)
        with _released(state) as released:
            speed = calibrate(state, images)
        rows = comm.gather(torch.tensor(speed, dtype=torch.float64), "calibrate").tolist()
        median = WorkerSpeed(*sorted(rows, reverse=True)[(len(rows) - 1) // 2])
        release_s = [max(0.0, median.backward_s - seconds) for seconds in released()]
        entries.append(
            {
                "image_size": image_size,
                "batch": batch,
                "accumulate": cfg.train.accumulate,
                "trained": 0,
                **median._asdict(),
                "release_s": release_s,
            }
        )
    sizes = [flat.numel() * flat.element_size() for flat in state.reducer.flats()]
    shapes = [[matrix_shape([*p.shape]) for p in group.params] for group in state.reducer.groups]
    matrices = [[shape for shape in group if shape] for group in shapes]
    return {**about(cfg, state), "groups": sizes, "matrices": matrices, "entries": entries}


def write_calibration(content: dict[str, Any], file: Path, comm: Comm) -> None:
    """Rank 0 writes `content` as JSON; every rank must call. Raises ResourceError on all."""
    with together(comm):
        if comm.rank == 0:
            write_atomically(file, json.dumps(content, indent=1).encode())


def calibration_text(content: dict[str, Any]) -> str:
    """One line for each entry, and the number of groups of gradients."""
    lines = [
        "{image_size} px, batch {batch}: {images_per_second:,.1f} images/s, "
        "backward {backward_s:.4f} s".format(**entry)
        for entry in content["entries"]
    ]
    return "\n".join([*lines, f"{len(content['groups'])} groups of gradients"])


@contextlib.contextmanager
def _released(state: State) -> Iterator[Callable[[], list[float]]]:
    """Record when each group's last gradient is ready, in each backward pass within the context.

    Gives a function to call afterwards. It returns, for each group, the median of the seconds from
    that moment to the end of the pass; they fall from group to group, as the reducer sends them in
    order.
    """
    cuda = state.settings.device.type == "cuda"
    marks: list[list[Any]] = [[] for _ in state.reducer.groups]
    hooks = []

    def ready(index: int, parameters: int) -> Callable[[torch.Tensor], None]:
        seen = 0

        def note(_: torch.Tensor) -> None:
            nonlocal seen
            seen += 1
            if seen % parameters == 0:
                marks[index].append(_now(cuda))

        return note

    for index, group in enumerate(state.reducer.groups):
        trained = [p for p in group.params if p.requires_grad]
        note = ready(index, len(trained))
        hooks += [p.register_post_accumulate_grad_hook(note) for p in trained]

    def before_end() -> list[float]:
        passes = max(map(len, marks))
        ends = [mark for mark in marks if len(mark) == passes][-1]
        falling: list[float] = []
        for mark in marks:
            # A group without gradients, or without them in some pass, is sent at the end.
            pairs = list(zip(mark, ends, strict=True))[1:] if len(mark) == passes else []
            seconds = statistics.median([_between(*pair) for pair in pairs]) if pairs else 0.0
            falling.append(max(0.0, min([seconds, *falling])))
        return falling

    try:
        yield before_end
    finally:
        for hook in hooks:
            hook.remove()


def _now(cuda: bool) -> Any:
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first: Any, last: Any) -> float:
    """Seconds between two marks; events must be complete."""
    if isinstance(first, float):
        return float(last - first)
    return float(first.elapsed_time(last)) / 1000
