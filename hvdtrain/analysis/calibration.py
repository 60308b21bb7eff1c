"""What the scaling predictor needs to know of this machine: one worker's speed at every image size
of the plan, and when in the backward pass each group of gradients is ready."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hvdtrain.analysis.largest_batch import noise
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config
from hvdtrain.engine.build import choose_device, init_state
from hvdtrain.engine.calibrate import WorkerSpeed, calibrate
from hvdtrain.engine.step import State
from hvdtrain.errors import ConfigError
from hvdtrain.files import write_atomically
from hvdtrain.run.efficiency import about


def calibrate_plan(cfg: Config, comm: Comm) -> dict[str, Any]:
    """The content of a calibration.json, the same form as a run's, with the gradients besides.

    Images are noise. Ranks measure at the same time, so what they share of a machine is in it; of
    their speeds the (lower) median counts, of the times of release rank 0's. `groups`: bytes of the
    reducer's groups in fp32; `release_s` of each entry: seconds from the start of the last
    micro-batch's backward pass until each is ready. Raises ConfigError without model.num_classes.
    """
    classes = cfg.model.num_classes
    if classes is None:
        raise ConfigError("model.num_classes: not set: the size of the classifier depends on it")
    device = choose_device(comm)
    state = init_state(cfg, comm, device, classes)
    settings = {
        (phase.image_size_at(epoch), phase.batch_per_worker * cfg.train.accumulate)
        for phase in cfg.phases
        for epoch in range(phase.epochs)
    }
    entries = []
    for image_size, batch in sorted(settings):
        comm.sum_(torch.zeros(1), "calibrate.start")  # all at the same time
        images = noise(state, batch, image_size, classes)
        with _released(state) as released:
            mine = calibrate(state, images)
        rows = comm.gather(torch.tensor(mine, dtype=torch.float64), "calibrate").tolist()
        alone = WorkerSpeed(*sorted(rows, reverse=True)[(len(rows) - 1) // 2])
        before_end = released()
        release_s = [max(0.0, alone.backward_s - seconds) for seconds in before_end]
        entries.append(
            {
                "image_size": image_size,
                "batch": batch,
                "accumulate": cfg.train.accumulate,
                "trained": 0,
                **alone._asdict(),
                "release_s": release_s,
            }
        )
    sizes = [flat.numel() * flat.element_size() for flat in state.reducer.flats()]
    return {**about(cfg, state), "groups": sizes, "entries": entries}


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
    """Note when each group's last gradient is there, in every backward pass within the context.

    Gives a function for afterwards: of each group the median of the seconds from then to the end
    of the pass, falling from group to group as the reducer sends them in order.
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
            # A group of which nothing is trained, or not in every pass, is sent at the end.
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
    """Seconds; for events all of which have passed."""
    if isinstance(first, float):
        return float(last - first)
    return float(first.elapsed_time(last)) / 1000
