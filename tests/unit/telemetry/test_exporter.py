"""The metrics of a rank, by real HTTP scrapes, and the file of addresses for a Prometheus server."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Metrics, Phase
from hvdtrain.engine.reducer import Reducer
from hvdtrain.errors import ResourceError
from hvdtrain.paths import RunPaths
from hvdtrain.telemetry import discovery
from hvdtrain.telemetry.hardware import Gpu, Network
from hvdtrain.telemetry.metrics import GPU, METRICS, table
from hvdtrain.telemetry.prometheus import Exporter
from hvdtrain.telemetry.reports import Eval
from hvdtrain.telemetry.sinks import Sinks
from tests.launch import REPOSITORY, free_port
from tests.made_reports import CHECKPOINT, REPORTS, train

PHASES = [Phase(epochs=1)]


class Second(Solo):
    """Local rank 1 of a machine."""

    local_rank = 1


def config(**metrics: Any) -> Config:
    """A run called `name` with these metrics settings."""
    return Config(name="name", phases=PHASES, metrics=Metrics(port=free_port(), **metrics))


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    """The exporter of local rank 0."""
    made = Exporter(config(), Solo())
    yield made
    made.close()


def scrape(exporter: Exporter) -> dict[str, float]:
    url = f"http://127.0.0.1:{exporter.endpoint.port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): (
            sample.value
        )
        for family in families
        for sample in family.samples
    }


def test_endpoint_serves_what_was_observed(exporter: Exporter) -> None:
    reducer = Reducer([torch.nn.Parameter(torch.zeros(2))], Solo())
    for seconds, wait_s, data_s in ((0.25, 0.02, 0.1), (0.75, 0.03, 0.3)):
        reducer.bytes_sent += 4000
        reducer.calls += 2
        for part in ("forward", "backward", "flight", "waiting"):
            getattr(reducer.clock, part)._add(wait_s * (1 + len(part)))
        exporter.observe_step(seconds, 32, data_s, reducer)
    exporter.late.inc(0.5)
    exporter.bad_samples["truncated"].inc()
    exporter.write(train(gradient_noise_scale=1310.5, cause="data", straggler=None))
    exporter.write(Eval(epoch=1.0, step=20, images=50, loss=1.5, top1=0.5, top5=0.9))
    # Not finite, not measured this time, and not known.
    exporter.write(train(gradient_norm=None, gradient_noise_scale=None, efficiency=None))
    before = time.time()
    exporter.write(CHECKPOINT)
    found = scrape(exporter)
    assert "hvdtrain_gradient_norm" not in found
    assert {
        "hvdtrain_lost_time_cause cause=data": 1.0,
        "hvdtrain_lost_time_cause cause=other": 0.0,
        "hvdtrain_samples_total": 64.0,
        "hvdtrain_steps_total": 2.0,
        "hvdtrain_step_seconds_sum": 1.0,
        "hvdtrain_step_seconds_count": 2.0,
        "hvdtrain_step_seconds_bucket le=0.3": 1.0,
        "hvdtrain_data_wait_seconds_total": 0.3,
        "hvdtrain_forward_seconds_total": pytest.approx(0.4),
        "hvdtrain_backward_seconds_total": pytest.approx(0.45),
        "hvdtrain_allreduce_wait_seconds_total": pytest.approx(0.4),
        "hvdtrain_allreduce_seconds_total": pytest.approx(0.35),
        "hvdtrain_allreduce_bytes_total": 8000.0,
        "hvdtrain_allreduce_calls_total": 4.0,
        "hvdtrain_late_seconds_total": 0.5,
        "hvdtrain_bad_samples_total reason=truncated": 1.0,
        "hvdtrain_bad_samples_total reason=decode": 0.0,
        "hvdtrain_loss": 2.5,
        "hvdtrain_top1_ratio": 0.25,
        "hvdtrain_learning_rate": 0.1,
        "hvdtrain_momentum": 0.9,
        "hvdtrain_epoch": 1.5,
        "hvdtrain_epochs": 3.0,
        "hvdtrain_progress_ratio": 0.5,
        "hvdtrain_eta_seconds": 312.0,
        "hvdtrain_run_samples": 1280.0,
        "hvdtrain_run_steps": 20.0,
        "hvdtrain_data_wait_ratio": 0.1,
        "hvdtrain_loss_scale": 1024.0,
        "hvdtrain_image_size_pixels": 128.0,
        "hvdtrain_gradient_noise_scale_images": 1310.5,
        "hvdtrain_val_loss": 1.5,
        "hvdtrain_val_top1_ratio": 0.5,
        "hvdtrain_val_top5_ratio": 0.9,
        "hvdtrain_val_epoch": 1.0,
        "hvdtrain_checkpoints_total": 1.0,
        "hvdtrain_checkpoint_write_seconds": 0.5,
        "hvdtrain_checkpoint_bytes": 4096.0,
        "hvdtrain_run_info compression=none model=resnet50 name=name precision=auto world_size=1": 1.0,
    }.items() <= found.items()
    assert before <= found["hvdtrain_checkpoint_timestamp_seconds"] <= time.time()
    assert found["process_start_time_seconds"] < before
    # A value that was not reported is absent: a zero would be misleading.
    assert "hvdtrain_scaling_efficiency_ratio" not in found


def test_every_metric_is_in_the_table(exporter: Exporter) -> None:
    known = {metric.name for metric in METRICS}
    for report in REPORTS:
        exporter.write(report)
    served = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in exporter.registry.collect()
    }
    assert served <= known
    assert known - served <= {metric.name for metric in GPU}
    for metric in METRICS:
        counter = metric.type == "counter"
        assert metric.name.endswith("_total") == counter


def test_the_documented_table_is_up_to_date() -> None:
    text = (REPOSITORY / "docs/metrics.md").read_text(encoding="utf-8")
    assert text.endswith(f"\n{table()}\n"), "run `hvdtrain metrics` and put it there"


def test_busy_port_gives_the_next_one() -> None:
    cfg = config()
    first = Exporter(cfg, Solo())
    second = Exporter(cfg, Solo())
    try:
        assert first.endpoint.port == cfg.metrics.port
        assert second.endpoint.port > cfg.metrics.port
        first.observe_step(1.0, 7, 0.0, Reducer([], Solo()))
        assert scrape(first)["hvdtrain_samples_total"] == 7
        assert scrape(second)["hvdtrain_samples_total"] == 0
    finally:
        first.close()
        second.close()
    with socket.socket() as probe:  # closed: the port is free again
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", cfg.metrics.port))


def test_interfaces_that_are_up_are_counted(tmp_path: Path) -> None:
    for name, state, kind, speed in [
        ("eth0", "up", 1, "10000"),
        ("veth1", "unknown", 1, "-1"),
        ("eth1", "down", 1, "1000"),
        ("lo", "unknown", 772, "-1"),
    ]:
        folder = tmp_path / name
        (folder / "statistics").mkdir(parents=True)
        (folder / "operstate").write_text(f"{state}\n")
        (folder / "type").write_text(f"{kind}\n")
        (folder / "speed").write_text(f"{speed}\n")
        (folder / "statistics/rx_bytes").write_text("123\n")
        (folder / "statistics/tx_bytes").write_text("456\n")
    (tmp_path / "gone").mkdir()
    samples = [sample for family in Network(tmp_path).collect() for sample in family.samples]
    assert [(sample.name, sample.labels["interface"], sample.value) for sample in samples] == [
        ("hvdtrain_network_receive_bytes_total", "eth0", 123.0),
        ("hvdtrain_network_receive_bytes_total", "veth1", 123.0),
        ("hvdtrain_network_transmit_bytes_total", "eth0", 456.0),
        ("hvdtrain_network_transmit_bytes_total", "veth1", 456.0),
        ("hvdtrain_network_speed_bytes_per_second", "eth0", 1.25e9),
    ]


def test_only_the_first_rank_of_a_machine_has_interfaces() -> None:
    second = Exporter(config(), Second())
    try:
        names = {family.name for family in second.registry.collect()}
    finally:
        second.close()
    assert not any(name.startswith("hvdtrain_network") for name in names)
    assert "process_cpu_seconds" in names


def test_gpu_has_the_values_it_supports() -> None:
    class NVMLError(Exception):
        pass

    def refuse(handle: object) -> int:
        raise NVMLError

    nvml = ModuleType("pynvml")
    vars(nvml).update(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=87),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=3 << 30, total=8 << 30),
        nvmlDeviceGetPowerUsage=refuse,
        nvmlDeviceGetTemperature=lambda handle, sensor: 61,
    )
    found = {f.name: f.samples[0].value for f in Gpu(nvml, object()).collect()}
    assert found == {
        "hvdtrain_gpu_utilization_ratio": 0.87,
        "hvdtrain_gpu_memory_used_bytes": 3 << 30,
        "hvdtrain_gpu_memory_total_bytes": 8 << 30,
        "hvdtrain_gpu_temperature_celsius": 61,
    }


class Pair(Solo):
    """Rank 0 of two; the other one has the same address."""

    def gather_text(self, text: str) -> list[str]:
        return [text, text.replace('"rank": "0"', '"rank": "1"')] if text.startswith("[") else [""]


def test_addresses_are_published_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prometheus").mkdir()
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "token").chmod(0o644)
    cfg = config(file_sd_dir=f"{tmp_path}/prometheus", token_file=f"{tmp_path}/token")
    paths = RunPaths(tmp_path / "run-1")
    paths.create()
    sinks = Sinks(cfg, Pair(), paths, ["a", "b"])
    try:
        discovery.publish(cfg.metrics, Pair(), paths, sinks)
    finally:
        sinks.close()
    found = json.loads(paths.file_sd.read_text())
    labels = {"run": "run-1", "local_rank": "0", "host": socket.gethostname()}
    address = f"127.0.0.1:{cfg.metrics.port}"
    assert found == [
        {"targets": [address], "labels": {**labels, "rank": "0"}},
        {"targets": [address], "labels": {**labels, "rank": "1"}},
    ]
    other = tmp_path / "prometheus/run-1.json"
    assert json.loads(other.read_text()) == found
    out = capsys.readouterr().out
    assert out.count("can be read by other users: chmod 600") == 1
    assert "secret" not in out + paths.events.read_text()
    assert f"live page: http://{address}/" in out.splitlines()
    assert "live page" not in paths.events.read_text()  # of no use after the run
    discovery.withdraw(cfg.metrics, Pair(), paths)
    assert not paths.file_sd.exists()
    assert not other.exists()


def test_folder_of_the_server_must_exist(tmp_path: Path) -> None:
    cfg = config(file_sd_dir=f"{tmp_path}/none")
    paths = RunPaths(tmp_path)
    paths.create()
    sinks = Sinks(cfg, Solo(), paths, ["a"])
    try:
        with pytest.raises(ResourceError, match=r"metrics\.file_sd_dir: .*/none: no such folder"):
            discovery.publish(cfg.metrics, Solo(), paths, sinks)
    finally:
        sinks.close()


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("10.0.0.5", "10.0.0.5"),
        ("0.0.0.0", "node7"),
        ("::", "node7"),
        ("::1", "[::1]"),
        ("localhost", "localhost"),
    ],
)
def test_address_that_others_use(bind: str, address: str) -> None:
    assert discovery._address(bind, "node7") == address
