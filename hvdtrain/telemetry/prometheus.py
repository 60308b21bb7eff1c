"""The Prometheus endpoint of one rank."""

from __future__ import annotations

import errno
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from hvdtrain.config import Metrics
from hvdtrain.errors import ResourceError
from pipelines.bad import REASONS

STEP_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)


class Exporter:
    """Metrics of this rank, served at `http://bind:port + local_rank/metrics`."""

    def __init__(self, cfg: Metrics, local_rank: int) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = self._counter, self._gauge
        self.samples = counter("samples", "Training images this rank has used.")
        self.steps = counter("steps", "Updates this rank has made.")
        self.data_wait = counter("data_wait_seconds", "Time the step waited for images.")
        self.comm_wait = counter("allreduce_wait_seconds", "Time the step waited for gradients.")
        self.comm_bytes = counter("allreduce_bytes", "Gradient bytes handed to allreduce.")
        bad = Counter(
            "hvdtrain_bad_samples",
            "Training images this rank has masked because they are bad.",
            ["reason"],
            registry=self.registry,
        )
        self.bad_samples = {reason: bad.labels(reason) for reason in REASONS}
        self.step_seconds = Histogram(
            "hvdtrain_step_seconds",
            "Time from one update to the next.",
            buckets=STEP_BUCKETS,
            registry=self.registry,
        )
        self.gauges = {
            "loss": gauge("loss", "Training loss per image, all ranks, last interval."),
            "top1": gauge("top1_ratio", "Training top-1 accuracy, all ranks, last interval."),
            "images_per_second": gauge("images_per_second", "Training throughput, all ranks."),
            "lr": gauge("learning_rate", "Learning rate of the last update."),
            "image_size": gauge("image_size_pixels", "Side of the training images."),
            "epoch": gauge("epoch", "Epochs completed, with the fraction of the present one."),
            "efficiency": gauge(
                "scaling_efficiency_ratio",
                "Throughput over that of as many workers that do not communicate.",
            ),
            "gradient_noise_scale": gauge(
                "gradient_noise_scale_images",
                "Global batch at which noise and signal of the gradient are equal.",
            ),
            "val_loss": gauge("val_loss", "Loss per image of the last evaluation."),
            "val_top1": gauge("val_top1_ratio", "Top-1 accuracy of the last evaluation."),
            "val_top5": gauge("val_top5_ratio", "Top-5 accuracy of the last evaluation."),
        }
        self._seen = (0.0, 0.0, 0)
        self._stop = self._serve(cfg, cfg.port + local_rank)

    def observe_step(
        self, seconds: float, samples: int, data_wait_s: float, comm_wait_s: float, sent: int
    ) -> None:
        """One update: its time, this rank's images, and the running totals of this rank."""
        self.steps.inc()
        self.samples.inc(samples)
        self.step_seconds.observe(seconds)
        data, comm, size = self._seen
        self.data_wait.inc(max(0.0, data_wait_s - data))
        self.comm_wait.inc(max(0.0, comm_wait_s - comm))
        self.comm_bytes.inc(sent - size)
        self._seen = (data_wait_s, comm_wait_s, sent)

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Set the gauges that `values` names; evaluation results go by `val_`."""
        prefix = "val_" if kind == "eval" else ""
        for key, value in values.items():
            if prefix + key in self.gauges and value is not None:
                self.gauges[prefix + key].set(value)

    def close(self) -> None:
        """Stop serving."""
        server, thread = self._stop
        server.shutdown()
        server.server_close()
        thread.join()

    def _serve(self, cfg: Metrics, port: int) -> Any:
        try:
            return start_http_server(port, cfg.bind, self.registry)
        except OSError as error:
            busy = error.errno == errno.EADDRINUSE
            reason = (
                "is in use by another program" if busy else f"cannot be opened ({error.strerror})"
            )
            raise ResourceError(
                f"metrics.port: {cfg.bind}:{port} {reason}: choose another base with "
                "metrics.port=PORT, or metrics.enabled=false"
            ) from None

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"hvdtrain_{name}", text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"hvdtrain_{name}", text, registry=self.registry)
