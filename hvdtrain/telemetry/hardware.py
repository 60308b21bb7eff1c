"""Metrics that are read from the kernel and the GPU's driver at each scrape."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hvdtrain.telemetry.metrics import GPU, NETWORK

LOOPBACK_TYPE = 772
"""ARPHRD_LOOPBACK. Source: linux/if_arp.h"""


class Network(Collector):
    """Bytes of every interface that is up, as the kernel counts them below `root`."""

    def __init__(self, root: Path = Path("/sys/class/net")) -> None:
        self._root = root

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Bytes received and sent, and the link's speed if the kernel knows it."""
        received, sent, speed = (
            CounterMetricFamily(NETWORK[0].name, NETWORK[0].text, labels=["interface"]),
            CounterMetricFamily(NETWORK[1].name, NETWORK[1].text, labels=["interface"]),
            GaugeMetricFamily(NETWORK[2].name, NETWORK[2].text, labels=["interface"]),
        )
        for folder in sorted(self._root.glob("*/")):
            with contextlib.suppress(OSError, ValueError):  # the interface may go away meanwhile
                # The state of virtual interfaces is unknown, and they work.
                up = (folder / "operstate").read_text().strip() in ("up", "unknown")
                if not up or _number(folder / "type") == LOOPBACK_TYPE:
                    continue
                counts = [_number(folder / "statistics" / f"{way}_bytes") for way in ("rx", "tx")]
                received.add_metric([folder.name], counts[0])
                sent.add_metric([folder.name], counts[1])
                megabits = _number(folder / "speed")
                if megabits > 0:
                    speed.add_metric([folder.name], megabits * 1e6 / 8)
        yield from (received, sent, speed)


class LinkUse:
    """Network use of one machine since the last call of `take`."""

    def __init__(
        self,
        root: Path = Path("/sys/class/net"),
        tcp: Path = Path("/proc/net/snmp"),
    ) -> None:
        self._root, self._tcp = root, tcp
        self._before, self._segments = self._sent(), self._tcp_segments()

    def take(self) -> tuple[float, float, float]:
        """Bytes sent by the busiest interface except loopback; the speed of this interface in
        bytes/s; and the share of TCP segments that were sent again. 0 for what the kernel does not
        know."""
        now, (out, again) = self._sent(), self._tcp_segments()
        grown = {name: sent - self._before.get(name, sent) for name, sent in now.items()}
        segments = out - self._segments[0]
        resent = (again - self._segments[1]) / segments if segments > 0 else 0.0
        self._before, self._segments = now, (out, again)
        busiest = max(grown, key=lambda name: grown[name], default=None)
        if busiest is None or grown[busiest] <= 0:
            return 0.0, 0.0, resent
        speed = 0.0
        with contextlib.suppress(OSError, ValueError):
            speed = max(0, _number(self._root / busiest / "speed")) * 1e6 / 8
        return grown[busiest], speed, resent

    def _tcp_segments(self) -> tuple[int, int]:
        """Segments sent, and those sent again.
        Source: Linux, Documentation/networking/snmp_counter.rst"""
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = self._tcp.read_text().splitlines()
            names, values = (line.split() for line in lines if line.startswith("Tcp:"))
            counts = dict(zip(names, values, strict=True))
            return int(counts["OutSegs"]), int(counts["RetransSegs"])
        return 0, 0

    def _sent(self) -> dict[str, int]:
        sent = {}
        for folder in self._root.glob("*/"):
            with contextlib.suppress(OSError, ValueError):  # the interface may go away meanwhile
                if _number(folder / "type") != LOOPBACK_TYPE:
                    sent[folder.name] = _number(folder / "statistics/tx_bytes")
        return sent


def _number(path: Path) -> int:
    return int(path.read_text())


class Gpu(Collector):
    """One GPU, read through NVML: `nvml` is the initialised module pynvml, `handle` the GPU's."""

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The values that this GPU supports."""
        nvml, handle = self._nvml, self._handle
        memory = nvml.nvmlDeviceGetMemoryInfo
        reads: tuple[Callable[[], float], ...] = (
            lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            lambda: memory(handle).used,
            lambda: memory(handle).total,
            lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        )
        for metric, read in zip(GPU, reads, strict=True):
            with contextlib.suppress(nvml.NVMLError):
                yield GaugeMetricFamily(metric.name, metric.text, value=read())


def open_gpu() -> Gpu | None:
    """This rank's GPU; None without a GPU, without nvidia-ml-py, or if the driver refuses."""
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # With CUDA_VISIBLE_DEVICES, NVML's numbers differ from torch's; UUIDs do not.
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except pynvml.NVMLError:
        return None
