"""Prometheus' own programs, and a Slurm of our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fetch_prometheus import FetchError, find_prometheus
from tests.cluster import slurm as own_slurm


@pytest.fixture(scope="session")
def prometheus_bin() -> Path:
    """The folder with prometheus and promtool."""
    try:
        return find_prometheus()
    except FetchError as error:
        pytest.skip(f"no Prometheus here: {error}")


@pytest.fixture(scope="session")
def slurm() -> Iterator[own_slurm.Slurm]:
    """Two nodes; the partition `high` preempts jobs of `low`, the default."""
    if missing := [name for name in own_slurm.PROGRAMS if own_slurm.find(name) is None]:
        pytest.skip(
            f"no Slurm here: {', '.join(missing)} not found (Debian: slurmctld slurmd munge)"
        )
    cluster = own_slurm.Slurm()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
