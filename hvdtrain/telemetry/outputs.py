"""Other sinks for a run's figures: node_exporter, a Pushgateway, TensorBoard.

None of them may end a run that trains well: a failure after the start becomes one note.
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
"""Shows the user one line."""

TEXTFILE_INTERVAL_S = 15.0
"""Shortest time between two writes: the usual scrape interval."""
PUSH_TIMEOUT_S = 5.0
"""Timeout of the connection, and of each part of the answer."""

FINAL = (
    ("top1", "top1_ratio", "Top-1 accuracy of the last evaluation."),
    ("top5", "top5_ratio", "Top-5 accuracy of the last evaluation."),
    ("loss", "loss", "Loss per image of the last evaluation."),
    ("images_per_second", "images_per_second", "Mean throughput of training, all ranks."),
    (
        "scaling_efficiency",
        "scaling_efficiency_ratio",
        "Throughput divided by that of the same number of workers without communication.",
    ),
    ("train_seconds", "train_seconds", "Training time, including that before restarts."),
    ("wall_seconds", "wall_seconds", "Time from the last start to the end."),
    ("epochs", "epochs", "Epochs of the whole run."),
    ("samples", "samples", "Training images, all ranks, including those before restarts."),
    ("world_size", "world_size", "Ranks."),
)
"""The pushed gauges: key of `summary.json`, name after `hvdtrain_final_`, and meaning."""


class TextFile:
    """This rank's metrics as `hvdtrain_<run>_<rank>.prom`, for node_exporter's textfile collector.

    The file is replaced as a whole, at most every TEXTFILE_INTERVAL_S. It is removed when the run
    ends, also after a failure, since node_exporter would serve it for ever. Raises ResourceError if
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
        """`labels` (run, rank) give the files of one machine different names."""
        self._path = folder / "hvdtrain_{run}_{rank}.prom".format(**labels)
        self._metrics = _Labelled(registry, labels)
        self._note, self._clock = note, clock
        self._next = clock()
        try:
            PartFile(self._path).discard()
        except OSError as error:
            raise ResourceError(
                f"metrics.textfile_dir: {folder}: cannot be written: {error.strerror}: the folder of "
                "node_exporter's --collector.textfile.directory must exist on every machine"
            ) from None

    def write(self, report: Report) -> None:
        """Write all metrics as they are now, if the file is old enough.

        Nothing is written before training starts: a failure until then would leave the file.
        """
        if not isinstance(report, (Train, Eval)) or self._clock() < self._next:
            return
        self._next = self._clock() + TEXTFILE_INTERVAL_S
        try:
            self._replace()
        except OSError as error:
            self._next = float("inf")
            self._note(f"warning: {self._path}: cannot be written any more: {error.strerror}")

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _replace(self) -> None:
        """Without a sync to the disk, which could take long: after a crash nobody needs the file."""
        part = PartFile(self._path)
        try:
            part.file.write(generate_latest(self._metrics))
            part.part.chmod(0o644)  # node_exporter is another user
        except OSError:
            part.discard()
            raise
        part.keep(sync=False)


class _Labelled(Collector):
    """hvdtrain's own metrics with more labels, without `process_…`: node_exporter has its own."""

    def __init__(self, registry: Collector, labels: dict[str, str]) -> None:
        self._registry, self._labels = registry, labels

    def collect(self) -> Iterator[Metric]:
        """The registry makes new families at each call, so they can be changed here."""
        for family in self._registry.collect():
            if family.name.startswith("hvdtrain_"):
                family.samples = [
                    sample._replace(labels=sample.labels | self._labels)
                    for sample in family.samples
                ]
                yield family


class Pushgateway:
    """Pushes the FINAL figures of a complete run to the Pushgateway at `url`.

    They replace the metrics of the group job="hvdtrain", run=`run`.
    Source: https://github.com/prometheus/pushgateway
    """

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
        """There is nothing to close."""


class TensorBoard:
    """Writes the numbers of train and eval reports to `folder`, as scalars over the step.

    Raises ResourceError if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, note: Note) -> None:
        try:
            self._module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise ResourceError(
                f"metrics.tensorboard: cannot be used: {error}: pip install tensorboard, or set "
                "metrics.tensorboard=false"
            ) from None
        self._folder, self._note = folder, note
        self._writer: Any = None
        self._broken = False

    def write(self, report: Report) -> None:
        """Add one point to each curve; a thread writes them."""
        if not isinstance(report, (Train, Eval)) or self._broken:
            return
        try:
            if self._writer is None:
                # After a restart, the steps made again replace the earlier ones.
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
        """Write the remaining points."""
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.close()
