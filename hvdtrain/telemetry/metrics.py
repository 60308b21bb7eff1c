"""Every metric of a rank: its name, type, labels and meaning. docs/metrics.md is made from this.

Names follow the OpenMetrics conventions: base units (seconds, bytes), ratios from 0 to 1,
`_total` at the end of counters.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

STEP_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Upper bounds in seconds."""


class Metric(NamedTuple):
    """One metric as it is served."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    text: str
    report: str = ""
    """`kind.key` of the report that sets it. A gauge is absent until then."""
    labels: tuple[str, ...] = ()


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"{name}_total", "counter", text, labels=labels)


def _gauge(name: str, report: str, text: str) -> Metric:
    return Metric(f"hvdtrain_{name}", "gauge", text, report)


STEPS = (
    _counter(
        "hvdtrain_samples",
        "Places in batches that this rank has trained on since it started; those that only fill an "
        "epoch's last batch count, too, unlike in `hvdtrain_run_samples`.",
    ),
    _counter("hvdtrain_steps", "Updates this rank has made since it started."),
    Metric("hvdtrain_step_seconds", "histogram", "Time from one update to the next."),
    _counter("hvdtrain_data_wait_seconds", "Time the step waited for images."),
    _counter("hvdtrain_forward_seconds", "Time of forward passes and losses."),
    _counter(
        "hvdtrain_backward_seconds", "Time of backward passes, during which gradients are sent."
    ),
    _counter(
        "hvdtrain_allreduce_wait_seconds",
        "Time the step waited for gradients once backward had ended: exposed communication.",
    ),
    _counter(
        "hvdtrain_allreduce_seconds",
        "Time from the first gradients handed to the network until all are back; less the wait, "
        "it is communication hidden behind backward passes.",
    ),
    _counter("hvdtrain_allreduce_bytes", "Gradient bytes handed to allreduce."),
    _counter("hvdtrain_allreduce_calls", "Allreduces of gradients."),
    _counter(
        "hvdtrain_late_seconds",
        "Time by which this rank came later than the typical one, in the steps it did.",
    ),
    _counter(
        "hvdtrain_late_data_seconds",
        "Of `hvdtrain_late_seconds_total`, the time it waited for images longer than the typical rank.",
    ),
    _counter(
        "hvdtrain_bad_samples", "Training images this rank has masked as they are bad.", "reason"
    ),
    _counter("hvdtrain_checkpoints", "Checkpoints written since the start. Rank 0 alone."),
)
"""Counted by each rank for itself."""

REPORTED = (
    _gauge("loss", "train.loss", "Training loss per image, all ranks, last interval."),
    _gauge("top1_ratio", "train.top1", "Training top-1 accuracy, all ranks, last interval."),
    _gauge("top5_ratio", "train.top5", "Training top-5 accuracy, all ranks, last interval."),
    _gauge("images_per_second", "train.images_per_second", "Throughput, all ranks, last interval."),
    _gauge("learning_rate", "train.lr", "Learning rate of the last update."),
    _gauge("momentum", "train.momentum", "Momentum, or β1, of the last update."),
    _gauge("image_size_pixels", "train.image_size", "Side of the training images."),
    _gauge("batch_images", "train.batch_per_worker", "Images of one forward pass on one rank."),
    _gauge("global_batch_images", "train.global_batch_size", "Images of one update, all ranks."),
    _gauge("loss_scale", "train.loss_scale", "Factor on fp16 gradients; falls when one overflows."),
    _gauge(
        "gradient_norm",
        "train.gradient_norm",
        "L2 norm of the gradient over the global batch, before clipping, at the last report.",
    ),
    _gauge(
        "run_skipped_updates",
        "train.skipped_updates",
        "Updates left out since this start as gradients under a loss scale were not finite.",
    ),
    _gauge("epoch", "train.epoch", "Epochs completed, with the fraction of the present one."),
    _gauge("epochs", "train.epochs", "Epochs of the whole run."),
    _gauge("phase", "train.phase", "Number of the present phase, from 0."),
    _gauge("progress_ratio", "train.progress", "Share of the run's training that is done."),
    _gauge("eta_seconds", "train.eta_s", "Training time left at the last interval's throughput."),
    _gauge("run_steps", "train.step", "Updates since the run began, before restarts too."),
    _gauge("run_samples", "train.total_samples", "Training images, all ranks, restarts or not."),
    _gauge(
        "data_wait_ratio",
        "train.data_wait_ratio",
        "Share of the last interval in which steps waited for images, mean over ranks.",
    ),
    _gauge(
        "allreduce_wait_ratio",
        "train.comm_wait_ratio",
        "Share of the last interval in which steps waited for gradients, mean over ranks.",
    ),
    _gauge(
        "scaling_efficiency_ratio",
        "train.efficiency",
        "Throughput over that of as many workers that do not communicate, last interval. None with "
        "one rank.",
    ),
    _gauge(
        "run_scaling_efficiency_ratio",
        "train.efficiency_so_far",
        "The same of all intervals since this start of the run, as in summary.json.",
    ),
    _gauge(
        "scaling_efficiency_ceiling_ratio",
        "train.efficiency_ceiling",
        "Efficiency that the link allows by the ring's cost. None on one machine, or where its "
        "speed is not known.",
    ),
    *(
        _gauge(f"lost_{cause}_ratio", f"train.lost_{cause}_ratio", text)
        for cause, text in {
            "data": "Share of the last interval lost waiting for images, on the typical rank.",
            "communication": "Share of the last interval lost waiting for the network.",
            "straggling": "Share of the last interval lost waiting for the last rank.",
            "padding": "Share of the last interval lost on places that fill up an epoch's last batch.",
            "other": "Share of the last interval lost computing slower together than alone.",
        }.items()
    ),
    _gauge(
        "network_bytes_per_second",
        "train.network_bytes_per_second",
        "Sent by each machine's busiest interface, mean over machines, last interval.",
    ),
    _gauge(
        "gradient_noise_scale_images",
        "train.gradient_noise_scale",
        "Global batch at which noise and signal of the gradient are equal.",
    ),
    _gauge("val_loss", "eval.loss", "Loss per image of the last evaluation."),
    _gauge("val_top1_ratio", "eval.top1", "Top-1 accuracy of the last evaluation."),
    _gauge("val_top5_ratio", "eval.top5", "Top-5 accuracy of the last evaluation."),
    _gauge("val_epoch", "eval.epoch", "Epochs completed at the last evaluation."),
    _gauge(
        "run_restarts_after_signal",
        "start.restarts_after_signal",
        "Times the run went on after it was stopped by a signal. Rank 0 alone.",
    ),
    _gauge(
        "run_restarts_after_crash",
        "start.restarts_after_crash",
        "Times the run went on after it had ended in no order. Rank 0 alone.",
    ),
    _gauge(
        "checkpoint_timestamp_seconds",
        "checkpoint.timestamp_s",
        "When the last checkpoint was complete, Unix time. Rank 0 alone.",
    ),
    _gauge(
        "checkpoint_write_seconds",
        "checkpoint.seconds",
        "Time that writing the last checkpoint took. Rank 0 alone.",
    ),
    _gauge("checkpoint_bytes", "checkpoint.bytes", "Size of the last checkpoint. Rank 0 alone."),
)
"""Set by the reports that all ranks share."""

CAUSE = Metric(
    "hvdtrain_lost_time_cause",
    "gauge",
    "1 for the cause that most of the lost time of the last interval goes to, 0 for the others; all 0 "
    "where less than 5 % is lost.",
    "train.cause",
    ("cause",),
)
"""Set by the same reports."""

FACTS = (
    Metric(
        "hvdtrain_build_info",
        "gauge",
        "1; the labels are the versions in use, empty where not installed.",
        labels=("version", "python", "torch", "horovod", "dali"),
    ),
    Metric(
        "hvdtrain_run_info",
        "gauge",
        "1; the labels tell what is trained. The run's directory is the label `run` of file_sd.",
        labels=("name", "model", "world_size", "precision", "compression"),
    ),
)

NETWORK = (
    _counter(
        "hvdtrain_network_receive_bytes",
        "Bytes received, by the kernel's count. Local rank 0 alone.",
        "interface",
    ),
    _counter(
        "hvdtrain_network_transmit_bytes",
        "Bytes sent, by the kernel's count. Local rank 0 alone.",
        "interface",
    ),
    Metric(
        "hvdtrain_network_speed_bytes_per_second",
        "gauge",
        "Speed of the link where the kernel knows it. Local rank 0 alone.",
        labels=("interface",),
    ),
)
"""Of every interface that is up, but for loopback, read when scraped."""

GPU = (
    Metric("hvdtrain_gpu_utilization_ratio", "gauge", "Share of time in which a kernel ran."),
    Metric("hvdtrain_gpu_memory_used_bytes", "gauge", "Memory in use on the device."),
    Metric("hvdtrain_gpu_memory_total_bytes", "gauge", "Memory of the device."),
    Metric("hvdtrain_gpu_power_watts", "gauge", "Power drawn."),
    Metric("hvdtrain_gpu_temperature_celsius", "gauge", "Temperature of the GPU."),
)
"""Of this rank's GPU, read when scraped, where nvidia-ml-py is installed."""

PROCESS = (
    _counter("process_cpu_seconds", "User and system CPU time of this rank."),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory of this rank."),
    Metric("process_virtual_memory_bytes", "gauge", "Virtual memory of this rank."),
    Metric("process_start_time_seconds", "gauge", "When this rank started, Unix time."),
    Metric("process_open_fds", "gauge", "Open file descriptors of this rank."),
    Metric("process_max_fds", "gauge", "Most file descriptors this rank may open."),
)

METRICS = (*STEPS, *REPORTED, CAUSE, *FACTS, *NETWORK, *GPU, *PROCESS)


def table() -> str:
    """All metrics as a Markdown table, which docs/metrics.md ends with."""
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.text} |")
    return "\n".join(lines)
