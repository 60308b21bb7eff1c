"""Other places that take a run's figures: node_exporter, a Pushgateway, TensorBoard.

None of them may fail a run that trains well: what goes wrong later than the start is one note.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Metric, generate_latest, push_to_gateway
from prometheus_client.registry import Collector

from hvdtrain.errors import ResourceError
from hvdtrain.files import PartFile
from hvdtrain.telemetry.reports import End, Eval, Report, Train

Note = Callable[[str], None]
"""Tells the user one line."""

TEXTFILE_INTERVAL_S = 15.0
"""Shortest time between two writes: the usual interval of a scrape."""
PUSH_TIMEOUT_S = 5.0
"""For the connection, and for each part of the answer."""

FINAL = (
    ("top1", "top1_ratio", "Top-1 accuracy of the last evaluation."),
    ("top5", "top5_ratio", "Top-5 accuracy of the last evaluation."),
    ("loss", "loss", "Loss per image of the last evaluation."),
    ("images_per_second", "images_per_second", "Mean throughput of training, all ranks."),
    (
        "scaling_efficiency",
        "scaling_efficiency_ratio",
        "Throughput over that of as many workers that do not communicate.",
    ),
    ("train_seconds", "train_seconds", "Time of training, restarts or not."),
    ("wall_seconds", "wall_seconds", "Time from the last start to the end."),
    ("epochs", "epochs", "Epochs of the whole run."),
    ("samples", "samples", "Training images, all ranks, restarts or not."),
    ("world_size", "world_size", "Ranks."),
)
"""Key of `summary.json`, name after `hvdtrain_final_`, and meaning of each pushed gauge."""


class TextFile:
    """This rank's metrics as `hvdtrain_<run>_<rank>.prom`, for node_exporter's textfile collector.

    Written whole or not at all, at most every TEXTFILE_INTERVAL_S, and taken away when the run
    ends, in order or not: node_exporter would serve the file for ever. Raises ResourceError where
    `folder` cannot be written. Source: https://github.com/prometheus/node_exporter
    """

    def __init__(
        self,
        folder: Path,
        registry: Collector,
        labels: dict[str, str],
        note: Note,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`labels` (run, rank) tell the files of one machine apart."""
        self._path = folder / "hvdtrain_{run}_{rank}.prom".format(**labels)
        self._metrics = _Labelled(registry, labels)
        self._note, self._clock = note, clock
        self._next = clock()
        try:
            PartFile(self._path).discard()
        except OSError as error:
            raise ResourceError(
                f"metrics.textfile_dir: {folder}: cannot be written: {error.strerror}: it must be "
                "there on every machine, for node_exporter's --collector.textfile.directory"
            ) from None

    def write(self, report: Report) -> None:
        """All metrics as they are now, if the file is old enough; none before training starts,
        as nobody would take it away."""
        if not isinstance(report, (Train, Eval)) or self._clock() < self._next:
            return
        self._next = self._clock() + TEXTFILE_INTERVAL_S
        try:
            self._replace()
        except OSError as error:
            self._next = float("inf")
            self._note(f"warning: {self._path}: cannot be written any more: {error.strerror}")

    def close(self) -> None:
        """Take the file away."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _replace(self) -> None:
        """Not synced to the disk, which could take long: a file lost in a crash is of no use."""
        part = PartFile(self._path)
        try:
            part.file.write(generate_latest(self._metrics))
            part.part.chmod(0o644)  # node_exporter is another user
        except OSError:
            part.discard()
            raise
        part.keep(sync=False)


class _Labelled(Collector):
    """hvdtrain's own metrics with more labels; node_exporter has `process_…` of itself."""

    def __init__(self, registry: Collector, labels: dict[str, str]) -> None:
        self._registry, self._labels = registry, labels

    def collect(self) -> Iterator[Metric]:
        """Made anew by the registry each time, so they can be changed."""
        for family in self._registry.collect():
            if family.name.startswith("hvdtrain_"):
                family.samples = [
                    sample._replace(labels=sample.labels | self._labels)
                    for sample in family.samples
                ]
                yield family


class Pushgateway:
    """The FINAL figures of a run that has ended, pushed to the Pushgateway at `url` in the group
    job="hvdtrain", run=`run`, whose metrics they replace.
    Source: https://github.com/prometheus/pushgateway"""

    def __init__(self, url: str, run: str, note: Note) -> None:
        self._url, self._run, self._note = url, run, note

    def write(self, report: Report) -> None:
        """Push the summary."""
        if not isinstance(report, End):
            return
        values, registry = report.values(), CollectorRegistry()
        for key, name, text in FINAL:
            if values.get(key) is not None:
                Gauge(f"hvdtrain_final_{name}", text, registry=registry).set(values[key])
        try:
            push_to_gateway(
                self._url, "hvdtrain", registry, {"run": self._run}, timeout=PUSH_TIMEOUT_S
            )
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._note(f"warning: metrics.pushgateway: {self._url}: nothing pushed: {error}")

    def close(self) -> None:
        """Nothing is open."""


class TensorBoard:
    """The numbers of train and eval reports as scalars over the step, in `folder`.

    Raises ResourceError where TensorBoard is not installed.
    """

    def __init__(self, folder: Path, note: Note) -> None:
        try:
            self._module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise ResourceError(
                f"metrics.tensorboard: cannot be used: {error}: pip install tensorboard, or "
                "metrics.tensorboard=false"
            ) from None
        self._folder, self._note = folder, note
        self._writer: Any = None
        self._broken = False

    def write(self, report: Report) -> None:
        """One point of each curve; they are written by a thread."""
        if not isinstance(report, (Train, Eval)) or self._broken:
            return
        try:
            if self._writer is None:
                # Steps made again after a restart replace those of before.
                self._writer = self._module.SummaryWriter(
                    self._folder, purge_step=report.step, max_queue=10_000, flush_secs=30
                )
            for key, value in report.values().items():
                if isinstance(value, (int, float)) and key != "step":
                    self._writer.add_scalar(f"{report.kind}/{key}", value, report.step)
        except Exception as error:  # noqa: BLE001
            self._broken = True
            self._note(f"warning: {self._folder}: no more points for TensorBoard: {error}")

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.close()
