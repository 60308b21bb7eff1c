"""Tuning of the gradient exchange: measured when a run starts, kept when it is resumed."""

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
"""Sizes that are measured; the first that takes longer than LONG_S is the last."""
LONG_S = 0.25
ROUNDS = 3
ENOUGH = 0.95
"""A group is large enough if it reaches this share of the best throughput."""
FASTER = 0.9
"""fp16 is chosen if it takes at most this share of the time of fp32."""


class Exchange(NamedTuple):
    """One measured all-reduce; the median time of the slowest rank."""

    mb: float
    """MiB of fp32 gradients, before any compression."""
    compression: str
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """The settings of a run's gradient exchange, and why; the same on all ranks."""

    config: Config
    """The run's config with `comm.group_mb` and `comm.compression` resolved."""
    text: str
    """One line for the log."""
    record: dict[str, Any] | None
    """The content of `tuning.json`; None if nothing was measured."""

    def write(self, file: Path) -> None:
        """Write the record for a later resume; call it on rank 0."""
        if self.record is not None:
            write_atomically(file, json.dumps(self.record, indent=1).encode())


def tune(cfg: Config, comm: Comm, file: Path) -> Tuning:
    """Resolve `comm.group_mb` and `comm.compression`; every rank must call it.

    If `file` holds the settings of an earlier attempt with the same world size, they are kept,
    since other groups or types would change the run's arithmetic. Only rank 0 needs to see it.
    """
    if cfg.comm.tune == "fixed" or comm.size == 1:
        return _resolve(cfg, GROUP_MB, "none", "as configured", None)
    auto = cfg.comm.compression == "auto"
    stored = _read(file, comm.size, auto=auto) if comm.rank == 0 else None
    stored = json.loads(comm.gather_text(json.dumps(stored))[0])
    if stored is not None:
        chosen = (stored["group_mb"], stored["compression"])
        return _resolve(cfg, *chosen, "kept from tuning.json", stored)
    began = time.perf_counter()
    exchanges = measure(comm, choose_device(comm), halve=auto)
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
    """The smallest size, in MiB, that comes near the best throughput. Small groups leave little to
    send after the backward pass has ended."""
    plain = [each for each in exchanges if each.compression == "none"]
    best = max(each.mb / each.seconds for each in plain)
    return next(each.mb for each in plain if each.mb / each.seconds >= ENOUGH * best)


def choose_compression(exchanges: list[Exchange]) -> str:
    """fp16 if it makes the largest exchange faster, conversions included, else none."""
    seconds = {(each.mb, each.compression): each.seconds for each in exchanges}
    halved = [mb for mb, compression in seconds if compression == "fp16"]
    if not halved:
        return "none"
    mb = max(halved)
    return "fp16" if seconds[mb, "fp16"] <= FASTER * seconds[mb, "none"] else "none"


def measure(comm: Comm, device: torch.device, *, halve: bool) -> list[Exchange]:
    """Time all-reduces as the reducer makes them, in order of size; with `halve` also in fp16."""
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
    """Median seconds to sum `flat` over all ranks; `wire` is the buffer that is sent."""
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
    """Fill in what the config leaves open."""
    settings: dict[str, Any] = {
        "group_mb": cfg.comm.group_mb or group_mb,
        "compression": compression if cfg.comm.compression == "auto" else cfg.comm.compression,
    }
    if record is not None:
        record = {**record, **settings}
    resolved = cfg.model_copy(update={"comm": cfg.comm.model_copy(update=settings)})
    text = f"groups of {settings['group_mb']:g} MiB, compression {settings['compression']}"
    if settings["compression"] == "powersgd":
        text += f" of rank {cfg.comm.powersgd_rank}"
    return Tuning(resolved, f"gradient exchange: {text} ({why})", record)


def _read(file: Path, ranks: int, *, auto: bool) -> dict[str, Any] | None:
    """The choice of an earlier attempt; None if there is none for this world size, or with `auto` none that auto
    would make."""
    known = ("none", "fp16") if auto else ("none", "fp16", "bf16", "powersgd")
    try:
        record: dict[str, Any] = json.loads(file.read_bytes())
        size, compression = record["group_mb"], record["compression"]
        fits = record["world_size"] == ranks and compression in known
        return record if fits and 0 < size < math.inf else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
