"""What `hvdtrain scaling predict` would say of a member, by the speed of one worker that it measured."""

from __future__ import annotations

from pathlib import Path

from hvdtrain.analysis.study.gradients import start_checkpoint
from hvdtrain.checkpoint_files import MODEL_FILE
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError
from hvdtrain.paths import RunPaths
from hvdtrain.scaling.calibration_file import read_calibration_file
from hvdtrain.scaling.ends import Ends
from hvdtrain.scaling.inputs import GivenSpeed, clusters, worker_speed
from hvdtrain.scaling.overlap import Group
from hvdtrain.scaling.predict import predict
from hvdtrain.scaling.profile import Calibration, Profile


def seconds_per_epoch(cfg: Config, run: Path, ranks: int, images: int) -> Ends[float]:
    """Of the finished run `run` with the config `cfg`, on `ranks` ranks of one host.

    Raises ResourceError, CheckpointError or ConfigError where the run lacks what it needs.
    """
    speed = _speed(cfg, run)
    [cluster] = clusters("1", ranks, "1")  # within one host no link is used
    point = predict(cfg, speed.profile, cluster, num_samples=images)
    epochs = sum(phase.epochs for phase in cfg.phases)
    return point.seconds.map(lambda s: s / epochs)


def _speed(cfg: Config, run: Path) -> Calibration:
    """With the gradients of the network from the table of architectures; of one that it lacks all are
    taken to be ready when the backward pass ends."""
    file, times = RunPaths(run).calibration, cfg.train.accumulate
    try:
        return worker_speed(cfg, GivenSpeed(calibration=file))
    except ConfigError:
        size_bytes = (start_checkpoint(run) / MODEL_FILE).stat().st_size
    profiles = []
    for entry in read_calibration_file(file, str(file)).entries:
        step_s = entry.batch / entry.images_per_second
        backward_s = min(entry.backward_s, step_s / times)
        groups = (Group(size_bytes, backward_s),)
        batch = entry.batch // times
        profiles.append(Profile(entry.image_size, batch, step_s, backward_s, groups, times))
    return Calibration(profiles, cfg.model.name)
