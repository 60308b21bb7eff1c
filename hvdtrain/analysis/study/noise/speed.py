"""The speed of one worker of a run: from a calibration.json, else from the steps that the run has timed."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

from hvdtrain.checkpoint_files import MODEL_FILE, list_checkpoints
from hvdtrain.config.schema import Config
from hvdtrain.engine.compression.low_rank import matrix_shape
from hvdtrain.errors import CheckpointError, ConfigError, HvdtrainError
from hvdtrain.paths import RunPaths
from hvdtrain.report.events import number, whole
from hvdtrain.report.run import RunRecord, read_run
from hvdtrain.scaling.calibration_file import Entry, read_calibration_file
from hvdtrain.scaling.inputs import GivenSpeed, worker_speed
from hvdtrain.scaling.overlap import Group
from hvdtrain.scaling.profile import BACKWARD_SHARE, Calibration, Profile, hand_given

HOW = "give --calibration FILE (hvdtrain scaling calibrate makes one)"


def speed_of(cfg: Config, root: Path, calibration: Path | None) -> Calibration:
    """The speed of one worker for the config `cfg` of the run `root`, and in words where it is from.

    `calibration` is the user's file. Raises ConfigError where nothing says it, and ResourceError or
    CheckpointError for files that cannot be used.
    """
    file = calibration or RunPaths(root).calibration
    if calibration is None and not file.is_file():
        return _timed(cfg, root)
    content = read_calibration_file(file, str(file))
    if content.groups is not None or content.model != cfg.model.name or _in_table(cfg):
        found = worker_speed(cfg, GivenSpeed(calibration=file))
        return Calibration(found.profiles, f"{found.about} ({file})")
    profiles = [_of_entry(entry, cfg, root) for entry in content.entries]
    return Calibration(profiles, f"{content.model}, {content.device} ({file})")


def _in_table(cfg: Config) -> bool:
    from hvdtrain.scaling.architectures import ARCHITECTURES

    return cfg.model.name in ARCHITECTURES


def _of_entry(entry: Entry, cfg: Config, root: Path) -> Profile:
    """All gradients are taken to be ready when the backward pass ends."""
    times = entry.accumulate or cfg.train.accumulate
    step_s = entry.batch / entry.images_per_second
    backward_s = min(entry.backward_s, step_s / times)
    batch = max(1, entry.batch // times)
    groups = (_gradients(root, backward_s),)
    return Profile(entry.image_size, batch, step_s, backward_s, groups, times)


def _timed(cfg: Config, root: Path) -> Calibration:
    try:
        run = read_run(root)
    except HvdtrainError:
        raise ConfigError(f"{root}: speed of a worker is not known: {HOW}") from None
    if run.attempts[-1].world_size != 1:
        raise ConfigError(
            f"{root}: speed of a worker is not known: there is no calibration.json, and steps of several ranks "
            f"include their communication: {HOW}"
        )
    profiles = [_profile(cfg, root, size, batch, s) for (size, batch), s in _steps(run).items()]
    if not profiles:
        raise ConfigError(f"{root}: speed of a worker is not known: no step is timed: {HOW}")
    return Calibration(profiles, f"{cfg.model.name}, median of the run's own steps on one rank")


def _steps(run: RunRecord) -> dict[tuple[int, int], float]:
    """Median seconds of an update by image size and batch, the latter of one forward pass."""
    found: dict[tuple[int, int], list[float]] = {}
    for point in run.train:
        size, batch = whole(point.values, "image_size"), whole(point.values, "batch_per_worker")
        seconds = number(point.values, "step_seconds")
        if size and batch and seconds is not None and seconds > 0:
            found.setdefault((size, batch), []).append(seconds)
    return {key: statistics.median(times) for key, times in found.items()}


def _profile(cfg: Config, root: Path, size: int, batch: int, step_s: float) -> Profile:
    times = cfg.train.accumulate
    if _in_table(cfg):
        profile = hand_given(
            cfg.model.name,
            image_size=size,
            batch=batch,
            step_s=step_s / times,
            group_bytes=cfg.comm.group_bytes,
            classes=cfg.planned_classes or 1000,
        )
        return profile.accumulated(times)
    backward_s = BACKWARD_SHARE * step_s / times
    groups = (_gradients(root, backward_s),)
    return replace(Profile(size, batch, step_s, backward_s, groups), accumulate=times)


def _gradients(root: Path, ready_s: float) -> Group:
    """About those of the weights of a checkpoint; `ready_s`: when all are."""
    import safetensors

    found = list_checkpoints(RunPaths(root).checkpoints)[:1]
    if not found:
        raise CheckpointError(
            f"{root}: no checkpoint, so the size of its gradients is not known: {HOW}"
        )
    file = found[0] / MODEL_FILE
    try:
        size = float(file.stat().st_size)
        with safetensors.safe_open(file, "np") as opened:
            shapes = [opened.get_slice(key).get_shape() for key in list(opened.keys())]
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None
    matrices = [matrix_shape(shape) for shape in shapes]
    return Group(size, ready_s, tuple(matrix for matrix in matrices if matrix))
