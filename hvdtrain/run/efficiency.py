"""Scaling efficiency during a run, and what the lost time went to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hvdtrain import activity
from hvdtrain.comm.agreement import together
from hvdtrain.config.schema import Config
from hvdtrain.engine.calibrate import WorkerSpeed, calibrate
from hvdtrain.engine.step import State
from hvdtrain.errors import ResourceError
from hvdtrain.files import write_atomically
from hvdtrain.plan.epochs import Epoch
from hvdtrain.run.prepare import Run
from hvdtrain.scaling.calibration_file import CalibrationFile, read_calibration_file
from hvdtrain.scaling.ring import efficiency_ceiling, ring_seconds
from hvdtrain.telemetry.efficiency_sums import EfficiencySums
from hvdtrain.telemetry.lost_time import LostTime, lost_time, network_text
from hvdtrain.telemetry.meter import Interval
from hvdtrain.telemetry.reports import Note, RunScaling, Scaling


class _Key(NamedTuple):
    """What the speed of one worker depends on within a run."""

    image_size: int
    batch: int
    """Images per update on one rank."""
    trained: int
    """Index of the last phase that unfroze parts of the network; 0 if none does."""


class Efficiency:
    """Measured throughput divided by that of the same number of workers without communication.

    The baseline is measured at each new image size, batch and set of trained parts, on all ranks at
    the same time, or read from `metrics.calibration`. It is the (lower) median over ranks, so a
    slow machine counts as a loss. All values are the same on all ranks.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._stored = _stored(run)
        self._stored_here = _of_this_run(run)
        self._baselines: dict[_Key, WorkerSpeed] = {}
        self._key = _Key(0, 0, 0)
        self._sums = EfficiencySums()
        self.lost: LostTime | None = None
        """What was lost in the last interval."""

    def enter(self, epoch: Epoch, batch: Any) -> None:
        """Get the baseline for `epoch`, measured on its first `batch`; every rank must call it."""
        run = self._run
        self._key = _Key(epoch.image_size, len(batch.labels), trained_parts(run.cfg, epoch))
        if run.comm.size == 1 or self._key in self._baselines:
            return
        self._baselines[self._key] = self._stored.get(self._key) or _measure(run, batch)
        if run.comm.rank == 0:
            _write(run, self._stored_here | self._baselines)

    def add(self, interval: Interval) -> Scaling:
        """Efficiency and lost time of one interval, which also counts in `overall`."""
        baseline = self._baselines.get(self._key)
        if baseline is None:
            return Scaling()
        ranks = self._run.comm.size
        speed = ranks * baseline.images_per_second
        ideal_s = interval.measured.samples / speed
        places = ranks * self._key.batch * interval.step_s.shape[1]
        lost = lost_time(
            interval.step_s, interval.data_s, interval.wait_s, ideal_s, places / speed - ideal_s
        )
        self.lost = lost
        ceiling = self._ceiling(baseline, interval)
        if ceiling is not None and ceiling < ideal_s / lost.seconds:
            ceiling = None  # another way than the link that the kernel counts
        network = network_text(interval.link_speeds, interval.resent, self._run.hosts, ceiling)
        return self._sums.add(lost, self._run.hosts, network, ceiling)

    def overall(self) -> RunScaling:
        """Efficiency and lost time of all intervals so far."""
        return self._sums.overall()

    def _ceiling(self, baseline: WorkerSpeed, interval: Interval) -> float | None:
        """The highest efficiency that the link allows; None on one host or if its speed is unknown."""
        run, link_gbit = self._run, self._run.cfg.comm.link_gbit
        speed = link_gbit * 1e9 / 8 if link_gbit is not None else interval.link_bytes_per_s
        if len(set(run.hosts)) == 1 or speed is None:
            return None
        single_s = self._key.batch / baseline.images_per_second
        network_s = ring_seconds(run.state.reducer.step_bytes, run.comm.size, speed)
        return efficiency_ceiling(single_s, baseline.backward_s, network_s)


def _measure(run: Run, batch: Any) -> WorkerSpeed:
    activity.enter("calibrating: the speed of a single worker")
    run.comm.sum_(torch.zeros(1), "calibrate.start")  # all at the same time
    mine = torch.tensor(calibrate(run.state, batch), dtype=torch.float64)
    by_speed = sorted(run.comm.gather(mine, "calibrate").tolist(), reverse=True)
    return WorkerSpeed(*by_speed[(len(by_speed) - 1) // 2])


def trained_parts(cfg: Config, epoch: Epoch) -> int:
    """A number that changes with the parts of the network that are trained."""
    return epoch.phase_index if any(phase.freeze or phase.unfreeze for phase in cfg.phases) else 0


def about(cfg: Config, state: State) -> dict[str, Any]:
    """What must be equal in a stored calibration, besides image size and batch."""
    device = state.settings.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    precision = str(state.settings.autocast or "fp32").removeprefix("torch.")
    # Both change the speed; what a file says of neither was measured without.
    how, teacher = cfg.train.compile, cfg.train.teacher.weights
    precision += "" if how == "none" else f", compiled: {how}"
    precision += "" if teacher is None else f", with the teacher {teacher}"
    return {"model": cfg.model.name, "precision": precision, "device": name}


def _write(run: Run, baselines: dict[_Key, WorkerSpeed]) -> None:
    accumulate = {"accumulate": run.cfg.train.accumulate}
    entries = [
        {**key._asdict(), **accumulate, **baseline._asdict()} for key, baseline in baselines.items()
    ]
    content = {**about(run.cfg, run.state), "entries": entries}
    try:
        write_atomically(run.paths.calibration, json.dumps(content, indent=1).encode())
    except ResourceError as error:
        run.sinks.write(Note(f"warning: {error}"))


def _stored(run: Run) -> dict[_Key, WorkerSpeed]:
    """The speeds in `metrics.calibration`, a file that only rank 0 needs to see.

    Raises ResourceError on all ranks where it cannot be used.
    """
    name, comm = run.cfg.metrics.calibration, run.comm
    if name is None:
        return {}
    text = ""
    with together(comm):
        if comm.rank == 0:
            text = _read(Path(name), about(run.cfg, run.state)).model_dump_json()
    return _by_key(CalibrationFile.model_validate_json(comm.gather_text(text)[0]))


def _of_this_run(run: Run) -> dict[_Key, WorkerSpeed]:
    """Baselines of earlier attempts, to be kept in the file; {} on ranks above 0."""
    if run.comm.rank > 0:
        return {}
    try:
        return _by_key(_read(run.paths.calibration, about(run.cfg, run.state)))
    except ResourceError:
        return {}


def _by_key(calibration: CalibrationFile) -> dict[_Key, WorkerSpeed]:
    return {
        _Key(entry.image_size, entry.batch, entry.trained): WorkerSpeed(
            entry.images_per_second, entry.backward_s
        )
        for entry in calibration.entries
    }


def _read(file: Path, expected: dict[str, Any]) -> CalibrationFile:
    where = f"metrics.calibration: {file}"
    calibration = read_calibration_file(file, where)
    found = {key: getattr(calibration, key) for key in expected}
    if found != expected:
        raise ResourceError(f"{where}: made for {found}, this run has {expected}; measure it again")
    return calibration
