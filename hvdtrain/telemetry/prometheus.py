"""The metrics of one rank, and the endpoint that serves them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config, Metrics
from hvdtrain.engine.stopwatch import StepClock
from hvdtrain.telemetry.endpoint import Endpoint
from hvdtrain.telemetry.hardware import Network, open_gpu
from hvdtrain.telemetry.live import Live
from hvdtrain.telemetry.lost_time import CAUSES, LostTime
from hvdtrain.telemetry.meter import Interval
from hvdtrain.telemetry.metrics import CAUSE, FACTS, REPORTED, STEP_BUCKETS, STEPS
from hvdtrain.telemetry.reports import Checkpoint, Kind, Report
from hvdtrain.versions import installed_versions
from pipelines.bad import REASONS

TOTALS = (
    "hvdtrain_data_wait_seconds_total",
    "hvdtrain_forward_seconds_total",
    "hvdtrain_backward_seconds_total",
    "hvdtrain_allreduce_wait_seconds_total",
    "hvdtrain_allreduce_seconds_total",
    "hvdtrain_allreduce_bytes_total",
    "hvdtrain_allreduce_calls_total",
)
"""Counters that follow running totals of this rank, in the order of `observe_step`."""

SOURCES = {metric.report for metric in REPORTED}


class Exchange(Protocol):
    """What sends the gradients of this rank: our reducer, or that of a watched loop."""

    clock: StepClock
    bytes_sent: int
    calls: int


class Watched(NamedTuple):
    """What metrics say of a loop that has no config of ours."""

    metrics: Metrics
    name: str
    model: str
    precision: str = ""
    compression: str = ""


class Exporter:
    """Metrics of this rank, served at `/metrics` of its endpoint.

    Local rank 0 also has the metrics of the machine's network interfaces. On rank 0 the endpoint
    also serves the pages of `live`.
    """

    def __init__(self, cfg: Config | Watched, comm: Comm, live: Live | None = None) -> None:
        disable_created_metrics()  # else every counter has a second metric, the time it was made
        self.registry = registry = CollectorRegistry()
        self._counters = {
            metric.name: Counter(metric.name, metric.text, metric.labels, registry=registry)
            for metric in STEPS
            if metric.type == "counter"
        }
        self.samples = self._counters["hvdtrain_samples_total"]
        self.steps = self._counters["hvdtrain_steps_total"]
        self.late = self._counters["hvdtrain_late_seconds_total"]
        self.late_data = self._counters["hvdtrain_late_data_seconds_total"]
        self._totals = [self._counters[name] for name in TOTALS]
        self._seen = [0.0] * len(TOTALS)
        bad = self._counters["hvdtrain_bad_samples_total"]
        self.bad_samples = {reason: bad.labels(reason) for reason in REASONS}
        self.read_retries = self._counters["hvdtrain_read_retries_total"]
        [step] = [metric for metric in STEPS if metric.type == "histogram"]
        self.step_seconds = Histogram(step.name, step.text, buckets=STEP_BUCKETS, registry=registry)
        self._reported = Reported()
        registry.register(self._reported)
        _state_facts(registry, cfg, comm)
        ProcessCollector(registry=registry)
        if comm.local_rank == 0:
            registry.register(Network())
        if (gpu := open_gpu()) is not None:
            registry.register(gpu)
        self._rank = comm.rank
        self._live = live
        pages = {"/metrics": self._page, **(live.pages() if live else {})}
        self.endpoint = Endpoint(cfg.metrics, cfg.metrics.port + comm.local_rank, pages)

    def observe_step(self, seconds: float, samples: int, data_s: float, reducer: Exchange) -> None:
        """Count one update: its time, this rank's images, and this rank's running totals."""
        self.steps.inc()
        self.samples.inc(samples)
        self.step_seconds.observe(seconds)
        clock = reducer.clock
        parts = (clock.forward, clock.backward, clock.waiting, clock.flight)
        totals = [data_s, *(part.total_s for part in parts), reducer.bytes_sent, reducer.calls]
        for counter, total, seen in zip(self._totals, totals, self._seen, strict=True):
            counter.inc(max(0.0, total - seen))
        self._seen = totals

    def observe_interval(self, interval: Interval, lost: LostTime | None) -> None:
        """Count the steps of all ranks since the last report; `lost` is None with one rank."""
        if lost is not None:
            self.late.inc(float(lost.late_s[self._rank]))
            self.late_data.inc(float(lost.late_data[self._rank]))
        if self._live:
            self._live.observe_interval(interval, lost)

    def write(self, report: Report) -> None:
        """Set the gauges whose values are in this report."""
        values = report.values()
        if isinstance(report, Checkpoint):
            self._counters["hvdtrain_checkpoints_total"].inc()
            values["timestamp_s"] = time.time()
        self._reported.take(report.kind, values)
        if self._live:
            self._live.write(report)

    def close(self) -> None:
        """Stop serving."""
        self.endpoint.close()

    def _page(self) -> tuple[str, bytes]:
        return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self.registry)


class Reported(Collector):
    """The newest value of every metric that a report sets; a metric without a value is absent.

    A zero would be read as an efficiency of 0, or as a checkpoint of 1970.
    """

    def __init__(self) -> None:
        self._values: dict[str, float] = {}
        self._cause: tuple[str | None] | None = None

    def take(self, kind: Kind, values: dict[str, Any]) -> None:
        """Keep the values of one report; None removes a value.

        The noise scale keeps its value, since it is not measured in every interval.
        """
        if CAUSE.report == f"{kind}.cause" and "cause" in values:
            self._cause = (values["cause"],)
        for key, value in values.items():
            source = f"{kind}.{key}"
            if source not in SOURCES:
                continue
            if value is not None:
                self._values[source] = value
            elif key != "gradient_noise_scale":
                self._values.pop(source, None)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges that have a value."""
        for metric in REPORTED:
            value = self._values.get(metric.report)
            if value is not None:
                yield GaugeMetricFamily(metric.name, metric.text, value=value)
        if self._cause is not None:
            family = GaugeMetricFamily(CAUSE.name, CAUSE.text, labels=CAUSE.labels)
            for cause in CAUSES:
                family.add_metric([cause], float(cause == self._cause[0]))
            yield family


def _state_facts(registry: CollectorRegistry, cfg: Config | Watched, comm: Comm) -> None:
    """Set the metrics whose value is 1 and whose labels describe the run."""
    if isinstance(cfg, Config):
        of = (cfg.train.precision, cfg.comm.compression)
        cfg = Watched(cfg.metrics, cfg.name, cfg.model.name, *of)
    versions = installed_versions()
    dali = next((versions[name] for name in versions if name.startswith("nvidia-dali")), "")
    build = (
        versions["hvdtrain"],
        versions["python"],
        versions.get("torch", ""),
        versions.get("horovod", ""),
        dali,
    )
    run = (cfg.name, cfg.model, str(comm.size), cfg.precision, cfg.compression)
    for metric, values in zip(FACTS, (build, run), strict=True):
        Gauge(metric.name, metric.text, metric.labels, registry=registry).labels(*values).set(1)
