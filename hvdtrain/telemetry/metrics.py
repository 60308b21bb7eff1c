"""Every metric of a rank: its name, type, labels and meaning, from which docs/metrics.md is made.

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
    """`kind.key` of the report value that sets it. A gauge is absent until then."""
    labels: tuple[str, ...] = ()


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"{name}_total", "counter", text, labels=labels)


def _gauge(name: str, report: str, text: str) -> Metric:
    return Metric(f"hvdtrain_{name}", "gauge", text, report)


STEPS = (
    _counter(
        "hvdtrain_samples",
        "Images that this rank has trained on since it started. The padding of an epoch's last batch "
        "counts here, but not in `hvdtrain_run_samples`.",
    ),
    _counter("hvdtrain_steps", "Updates that this rank has made since it started."),
    Metric("hvdtrain_step_seconds", "histogram", "Time from one update to the next."),
    _counter("hvdtrain_data_wait_seconds", "Time the step waited for images."),
    _counter("hvdtrain_forward_seconds", "Time of forward passes and losses."),
    _counter(
        "hvdtrain_backward_seconds", "Time of backward passes; gradients are sent during this time."
    ),
    _counter(
        "hvdtrain_allreduce_wait_seconds",
        "Time the step waited for gradients after the backward pass: exposed communication.",
    ),
    _counter(
        "hvdtrain_allreduce_seconds",
        "Time from the start of the first allreduce of a step to the end of the last one. Minus "
        "`hvdtrain_allreduce_wait_seconds_total` it is the communication hidden behind backward passes.",
    ),
    _counter("hvdtrain_allreduce_bytes", "Gradient bytes sent by allreduce."),
    _counter("hvdtrain_allreduce_calls", "Allreduces of gradients."),
    _counter(
        "hvdtrain_late_seconds",
        "Time by which this rank was later than the typical rank, in the steps in which it was later.",
    ),
    _counter(
        "hvdtrain_late_data_seconds",
        "Part of `hvdtrain_late_seconds_total` in which this rank still waited for images.",
    ),
    _counter("hvdtrain_bad_samples", "Bad training images that this rank has masked.", "reason"),
    _counter(
        "hvdtrain_read_retries",
        "Reads of images that failed, as on a network disk, and were tried again on this rank.",
    ),
    _counter("hvdtrain_checkpoints", "Checkpoints written since the start. Only rank 0."),
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
    _gauge(
        "loss_scale",
        "train.loss_scale",
        "Factor on fp16 gradients; it falls when a gradient overflows.",
    ),
    _gauge(
        "gradient_norm",
        "train.gradient_norm",
        "L2 norm of the gradient over the global batch, before clipping, at the last report.",
    ),
    _gauge(
        "run_skipped_updates",
        "train.skipped_updates",
        "Updates skipped since this start because gradients were not finite under the loss scale.",
    ),
    _gauge("epoch", "train.epoch", "Epochs completed, with the fraction of the current one."),
    _gauge("epochs", "train.epochs", "Epochs of the whole run."),
    _gauge("phase", "train.phase", "Number of the current phase, from 0."),
    _gauge("progress_ratio", "train.progress", "Share of the run's epochs that is done."),
    _gauge(
        "eta_seconds", "train.eta_s", "Training time left at the throughput of the last interval."
    ),
    _gauge(
        "run_steps", "train.step", "Updates since the run began, including those before restarts."
    ),
    _gauge(
        "run_samples",
        "train.total_samples",
        "Training images since the run began, all ranks, including those before restarts.",
    ),
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
        "Throughput divided by that of the same number of workers without communication, last "
        "interval. Absent with one rank.",
    ),
    _gauge(
        "run_scaling_efficiency_ratio",
        "train.efficiency_so_far",
        "Scaling efficiency of all intervals since this start of the run, as in summary.json.",
    ),
    _gauge(
        "scaling_efficiency_ceiling_ratio",
        "train.efficiency_ceiling",
        "Highest efficiency that the slowest link allows, by the cost of a ring. Absent on one machine, "
        "or if the speed of the link is not known.",
    ),
    *(
        _gauge(f"lost_{cause}_ratio", f"train.lost_{cause}_ratio", text)
        for cause, text in {
            "data": "Share of the last interval lost waiting for images, on the typical rank.",
            "communication": "Share of the last interval lost waiting for the network.",
            "straggling": "Share of the last interval lost waiting for the last rank.",
            "padding": "Share of the last interval lost on padding of an epoch's last batch.",
            "other": "Share of the last interval lost because ranks compute slower together than a single worker.",
        }.items()
    ),
    _gauge(
        "network_bytes_per_second",
        "train.network_bytes_per_second",
        "Bytes sent by each machine's busiest interface, mean over machines, last interval.",
    ),
    _gauge(
        "gradient_noise_scale_images",
        "train.gradient_noise_scale",
        "Global batch size at which noise and signal of the gradient are equal.",
    ),
    _gauge("val_loss", "eval.loss", "Loss per image of the last evaluation."),
    _gauge("val_top1_ratio", "eval.top1", "Top-1 accuracy of the last evaluation."),
    _gauge("val_top5_ratio", "eval.top5", "Top-5 accuracy of the last evaluation."),
    _gauge("val_epoch", "eval.epoch", "Epochs completed at the last evaluation."),
    _gauge(
        "run_restarts_after_signal",
        "start.restarts_after_signal",
        "How often the run was resumed after a stop by a signal. Only rank 0.",
    ),
    _gauge(
        "run_restarts_after_crash",
        "start.restarts_after_crash",
        "How often the run was resumed after a crash. Only rank 0.",
    ),
    _gauge(
        "checkpoint_timestamp_seconds",
        "checkpoint.timestamp_s",
        "When the last checkpoint was complete, Unix time. Only rank 0.",
    ),
    _gauge(
        "checkpoint_write_seconds",
        "checkpoint.seconds",
        "Time for writing the last checkpoint. Only rank 0.",
    ),
    _gauge("checkpoint_bytes", "checkpoint.bytes", "Size of the last checkpoint. Only rank 0."),
)
"""Set by reports, which are the same on all ranks."""

CAUSE = Metric(
    "hvdtrain_lost_time_cause",
    "gauge",
    "1 for the cause that costs most time in the last interval, 0 for the others; 0 for all if less "
    "than 5 % is lost.",
    "train.cause",
    ("cause",),
)
"""Set by train reports, one series for each cause."""

FACTS = (
    Metric(
        "hvdtrain_build_info",
        "gauge",
        "Always 1; the labels are the versions in use, empty if not installed.",
        labels=("version", "python", "torch", "horovod", "dali"),
    ),
    Metric(
        "hvdtrain_run_info",
        "gauge",
        "Always 1; the labels say what is trained. The run's directory is the label `run` of file_sd.",
        labels=("name", "model", "world_size", "precision", "compression"),
    ),
)

NETWORK = (
    _counter(
        "hvdtrain_network_receive_bytes",
        "Bytes received, as the kernel counts them. Only local rank 0.",
        "interface",
    ),
    _counter(
        "hvdtrain_network_transmit_bytes",
        "Bytes sent, as the kernel counts them. Only local rank 0.",
        "interface",
    ),
    Metric(
        "hvdtrain_network_speed_bytes_per_second",
        "gauge",
        "Speed of the link, if the kernel knows it. Only local rank 0.",
        labels=("interface",),
    ),
)
"""Of every interface that is up, except loopback; read at each scrape."""

GPU = (
    Metric("hvdtrain_gpu_utilization_ratio", "gauge", "Share of the time in which a kernel ran."),
    Metric("hvdtrain_gpu_memory_used_bytes", "gauge", "Device memory in use."),
    Metric("hvdtrain_gpu_memory_total_bytes", "gauge", "Device memory in all."),
    Metric("hvdtrain_gpu_power_watts", "gauge", "Power drawn."),
    Metric("hvdtrain_gpu_temperature_celsius", "gauge", "Temperature of the GPU."),
)
"""Of this rank's GPU; read at each scrape, if nvidia-ml-py is installed."""

PROCESS = (
    _counter("process_cpu_seconds", "User and system CPU time of this rank."),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory of this rank."),
    Metric("process_virtual_memory_bytes", "gauge", "Virtual memory of this rank."),
    Metric("process_start_time_seconds", "gauge", "When this rank started, Unix time."),
    Metric("process_open_fds", "gauge", "Open file descriptors of this rank."),
    Metric(
        "process_max_fds", "gauge", "Largest number of file descriptors that this rank may open."
    ),
)

METRICS = (*STEPS, *REPORTED, CAUSE, *FACTS, *NETWORK, *GPU, *PROCESS)


def table() -> str:
    """All metrics as a Markdown table, the end of docs/metrics.md."""
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.text} |")
    return "\n".join(lines)
