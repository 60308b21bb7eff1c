"""The gradient exchange set to the network: measured at the start of a run, kept when it goes on."""

from __future__ import annotations

import json
import math
import socket
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import GROUP_MB, Config
from hvdtrain.engine.build import choose_device
from hvdtrain.files import write_atomically

SIZES_MB = (1, 2, 4, 8, 16, 32, 64)
"""Sizes that are measured, up to the first that takes longer than LONG_S."""
LONG_S = 0.25
ROUNDS = 3
ENOUGH = 0.95
"""A group is large enough at this share of the best throughput."""
FASTER = 0.9
"""Halving the bytes is worth its rounding where it takes at most this share of the time."""


class Exchange(NamedTuple):
    """One measured allreduce: the slowest rank's median."""

    mb: float
    """MiB of fp32 gradients, before any compression."""
    compression: str
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """What a run's gradient exchange is set to, and why; the same on all ranks."""

    config: Config
    """The run's, with `comm.group_mb` and `comm.compression` resolved."""
    text: str
    """One line for people."""
    record: dict[str, Any] | None
    """What `tuning.json` holds; None where nothing was measured."""

    def write(self, file: Path) -> None:
        """Keep it for when the run goes on; for rank 0."""
        if self.record is not None:
            write_atomically(file, json.dumps(self.record, indent=1).encode())


def tune(cfg: Config, comm: Comm, file: Path) -> Tuning:
    """Resolve `comm.group_mb` and `comm.compression`; every rank must call.

    What `file` of an earlier attempt with as many ranks holds is kept, as other groups or types
    would change the run's arithmetic. Only rank 0 needs to see the file.
    """
    if cfg.comm.tune == "fixed" or comm.size == 1:
        return _resolve(cfg, GROUP_MB, "none", "as configured", None)
    stored = _read(file, comm.size) if comm.rank == 0 else None
    stored = json.loads(comm.gather_text(json.dumps(stored))[0])
    if stored is not None:
        chosen = (stored["group_mb"], stored["compression"])
        return _resolve(cfg, *chosen, "kept from tuning.json", stored)
    began = time.perf_counter()
    exchanges = measure(comm, choose_device(comm), halve=cfg.comm.compression == "auto")
    record: dict[str, Any] = {
        "world_size": comm.size,
        "hosts": len(set(comm.gather_text(socket.gethostname()))),
        "group_mb": choose_group_mb(exchanges),
        "compression": choose_compression(exchanges),
        "exchanges": [exchange._asdict() for exchange in exchanges],
    }
    seconds = time.perf_counter() - began
    largest = [each for each in exchanges if each.compression == "none"][-1]
    why = (
        f"measured in {seconds:.1f} s: an allreduce of {largest.mb:g} MiB over {comm.size} ranks "
        f"takes {largest.seconds * 1e3:.3g} ms"
    )
    return _resolve(cfg, record["group_mb"], record["compression"], why, record)


def choose_group_mb(exchanges: list[Exchange]) -> float:
    """The smallest size that comes near the best throughput, MiB: the wire is used well, and what
    cannot start before the backward pass ends is short."""
    plain = [each for each in exchanges if each.compression == "none"]
    best = max(each.mb / each.seconds for each in plain)
    return next(each.mb for each in plain if each.mb / each.seconds >= ENOUGH * best)


def choose_compression(exchanges: list[Exchange]) -> str:
    """fp16 where it makes the largest exchange faster with both conversions, else none."""
    seconds = {(each.mb, each.compression): each.seconds for each in exchanges}
    halved = [mb for mb, compression in seconds if compression == "fp16"]
    if not halved:
        return "none"
    mb = max(halved)
    return "fp16" if seconds[mb, "fp16"] <= FASTER * seconds[mb, "none"] else "none"


def measure(comm: Comm, device: torch.device, *, halve: bool) -> list[Exchange]:
    """Allreduces as the reducer makes them, in order of size, and with `halve` in fp16, too."""
    found = []
    for mb in SIZES_MB:
        flat = torch.zeros(mb * 2**18, device=device)
        wires = {"none": flat}
        if halve:
            wires["fp16"] = torch.empty_like(flat, dtype=torch.float16)
        for compression, wire in wires.items():
            mine = _median_s(comm, flat, wire)
            slowest = comm.gather(torch.tensor([mine], dtype=torch.float64), "tune.seconds").max()
            found.append(Exchange(float(mb), compression, slowest.item()))
        if max(each.seconds for each in found) > LONG_S:
            break
    return found


def _median_s(comm: Comm, flat: torch.Tensor, wire: torch.Tensor) -> float:
    """Seconds to sum `flat` over all ranks by way of `wire`."""
    seconds = []
    for _ in range(ROUNDS):
        comm.sum_(torch.zeros(1), "tune.start")  # all at the same time
        began = time.perf_counter()
        if wire is not flat:
            wire.copy_(flat)
        comm.sum_(wire, f"tune.{wire.dtype}")
        if wire is not flat:
            flat.copy_(wire)
        if flat.device.type == "cuda":
            torch.cuda.synchronize(flat.device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _resolve(
    cfg: Config, group_mb: float, compression: str, why: str, record: dict[str, Any] | None
) -> Tuning:
    """What the config says itself stands."""
    settings: dict[str, Any] = {
        "group_mb": cfg.comm.group_mb or group_mb,
        "compression": compression if cfg.comm.compression == "auto" else cfg.comm.compression,
    }
    if record is not None:
        record = {**record, **settings}
    resolved = cfg.model_copy(update={"comm": cfg.comm.model_copy(update=settings)})
    text = f"groups of {settings['group_mb']:g} MiB, compression {settings['compression']}"
    return Tuning(resolved, f"gradient exchange: {text} ({why})", record)


def _read(file: Path, ranks: int) -> dict[str, Any] | None:
    """What an earlier attempt chose; None if there is nothing that fits this one."""
    try:
        record: dict[str, Any] = json.loads(file.read_bytes())
        size, compression = record["group_mb"], record["compression"]
        fits = record["world_size"] == ranks and compression in ("none", "fp16")
        return record if fits and 0 < size < math.inf else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
