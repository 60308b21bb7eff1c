"""`hvdtrain tune`: finds the learning rate and the batch for a model, its data and the hardware."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from hvdtrain import activity
from hvdtrain.analysis.largest_batch import Memory, Trial, best, largest_batch
from hvdtrain.analysis.lr_range import LRRange, as_dict, lr_range_test, plot
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.build import Parts, free_parts, set_up, whiten
from hvdtrain.engine.weights_source import start_from
from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.files import write_atomically
from hvdtrain.plan.epochs import make_plan


def tune_lr(
    cfg: Config, comm: Comm, *, lowest: float, highest: float, steps: int, output: Path
) -> LRRange:
    """LR range test at the batch and image size of the first phase.

    Rank 0 writes `lr_range.json` and `lr_range.png` to `output`. Raises ConfigError for an empty
    range.
    """
    with together(comm):
        if not 0 < lowest < highest or steps < 20:
            raise ConfigError(
                f"--from {lowest:g} --to {highest:g} --steps {steps}: expected 0 < from < to and "
                "at least 20 steps"
            )
    with set_up(cfg, comm) as parts:
        _start(parts, cfg, comm)
        result = lr_range_test(
            parts.state,
            parts.loaders,
            parts.plan.epochs[0],
            lowest=lowest,
            highest=highest,
            steps=steps,
        )
    activity.enter("drawing lr_range.png")
    with together(comm):
        if comm.rank == 0:
            _make(output)
            write_atomically(output / "lr_range.json", json.dumps(as_dict(result)).encode())
            plot(result, output / "lr_range.png")
    return result


def _start(parts: Parts, cfg: Config, comm: Comm) -> None:
    """Do what a run does before its first step: weights from a file, frozen parts, whitening."""
    state, epoch = parts.state, parts.plan.epochs[0]
    with together(comm):
        if comm.rank == 0 and cfg.model.weights is not None:
            start_from(cfg, state.model, parts.loaders.classes)
    comm.broadcast_(dict(state.model.state_dict()))
    if state.lookahead is not None:
        state.lookahead.begin()
    free_parts(state, cfg, epoch)
    activity.enter("decoding the first images")
    _i, batch = next(iter(parts.loaders.train(epoch)))
    whiten(state, cfg, batch.images)


def tune_batch(
    cfg: Config,
    comm: Comm,
    *,
    most: int,
    memory_bytes: float | None = None,
    write: Path | None = None,
) -> dict[int, list[Trial]]:
    """Trials of batches up to `most` per worker, by image size of the plan; every rank must call.

    `memory_bytes`: what each rank may use on a CPU. Rank 0 writes the config with the largest
    batches to `write`. Raises ConfigError if not even 8 images fit, and ResourceError if the file
    exists.
    """
    with together(comm):
        if write is not None and comm.rank == 0:
            require_new(write)
    with set_up(cfg, comm) as parts:
        classes = len(parts.loaders.classes)
        num_samples = parts.plan.num_samples
        sizes = sorted({epoch.image_size for epoch in parts.plan.epochs})
        memory = Memory(parts.state, memory_bytes)
        trials = {
            size: largest_batch(parts.state, memory, size, classes, most=most) for size in sizes
        }
    for size, tried in trials.items():
        if not best(tried):
            fault = ConfigError(
                f"model.name: {cfg.model.name}: not even {tried[0].batch_per_worker} images of "
                f"{size} px fit in memory on every rank: use a smaller model or image size"
            )
            fault.everywhere = True
            raise fault
    with together(comm):
        if write is not None and comm.rank == 0:
            write_atomically(write, tuned_config(cfg, trials, num_samples, comm.size).encode())
    return trials


def tuned_config(cfg: Config, trials: dict[int, list[Trial]], num_samples: int, ranks: int) -> str:
    """The whole config as YAML, with the largest batch that fits in each phase.

    When it is planned, the learning rate follows the batch by `lr.scaling`. No batch is larger than
    the images that a rank has in an epoch.
    """
    most = num_samples // (ranks * cfg.train.accumulate)
    tuned: dict[str, Any] = cfg.model_dump()
    for phase, written in zip(cfg.phases, tuned["phases"], strict=True):
        written["batch_per_worker"] = min(best(trials[phase.largest_image_size]), most)
    text = yaml.safe_dump(tuned, sort_keys=False, allow_unicode=True)
    make_plan(parse_config(text), ranks, num_samples)  # raises if it is no valid config or plan
    return text


def require_new(path: Path) -> None:
    """Raise ResourceError if the file exists."""
    if path.exists():
        raise ResourceError(f"--write {path}: exists; name another file")


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"--output {output}: cannot be written: {error.strerror}") from None
