"""The options of `hvdtrain scaling predict`: one worker's speed, and the clusters to predict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Literal

from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError
from hvdtrain.scaling.network import NETWORKS, Cluster
from hvdtrain.scaling.predict import parse_numbers
from hvdtrain.scaling.profile import Calibration, hand_given, read_calibration


@dataclass(frozen=True)
class GivenSpeed:
    """One worker's speed as a user gives it: a calibration.json, or one step by hand."""

    calibration: Path | None = None
    step_ms: float | None = None
    image_size: int | None = None
    batch: int | None = None


def worker_speed(cfg: Config, given: GivenSpeed) -> Calibration:
    """One worker's speed at the sizes and batches of `cfg`.

    Raises ConfigError unless exactly one way is given, and ResourceError for another file.
    """
    group_bytes = cfg.comm.group_bytes
    model, classes = cfg.model.name, cfg.planned_classes or 1000
    step_ms, image_size, batch = given.step_ms, given.image_size, given.batch
    if given.calibration is not None:
        if any(value is not None for value in (step_ms, image_size, batch)):
            raise ConfigError("--calibration and --step-ms: give one of them")
        return read_calibration(
            given.calibration,
            model,
            group_bytes=group_bytes,
            classes=classes,
            accumulate=cfg.train.accumulate,
        )
    if step_ms is None or image_size is None or batch is None:
        raise ConfigError(
            "speed of one GPU: give --calibration FILE (a run writes calibration.json, and so "
            "does hvdtrain scaling calibrate), or --step-ms, --image-size and --batch together"
        )
    if step_ms <= 0:
        raise ConfigError(f"--step-ms {step_ms:g}: expected a time above 0")
    profile = hand_given(
        model,
        image_size=image_size,
        batch=batch,
        step_s=step_ms / 1000,
        group_bytes=group_bytes,
        classes=classes,
    )
    return Calibration([profile], f"{model}, {step_ms:g} ms a step of {batch} at {image_size} px")


def clusters(
    nodes: str,
    gpus: int,
    links: str,
    *,
    network: Literal["tcp", "rdma"] = "tcp",
    algorithm: Literal["flat", "hierarchical"] = "flat",
    efficiency: float | None = None,
    latency_us: float | None = None,
) -> list[Cluster]:
    """Every number of `nodes` with every speed of `links` (`1,2,4` and Gbit/s), both rising.

    `efficiency` (0-1) and `latency_us` replace the figures of the network. Raises ConfigError.
    """
    base = NETWORKS[network]
    if efficiency is not None:  # a measured share holds for that link, whatever its speed
        base = replace(base, efficiency=efficiency, least_efficiency=None, most_gbit=inf)
    if latency_us is not None:
        base = replace(base, latency_s=latency_us / 1e6)
    sizes = sorted(int(n) for n in parse_numbers(nodes, "--nodes", whole=True))
    speeds = sorted(parse_numbers(links, "--link", whole=False))
    return [
        Cluster(hosts, gpus, replace(base, link_gbit=gbit), algorithm)
        for hosts in sizes
        for gbit in speeds
    ]
