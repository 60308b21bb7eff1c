"""Prometheus' programs, and a Slurm that the tests start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fetch_prometheus import FetchError, find_prometheus
from tests.cluster import slurm as slurm_daemons


@pytest.fixture(scope="session")
def prometheus_bin() -> Path:
    """The folder with prometheus and promtool."""
    try:
        return find_prometheus()
    except FetchError as error:
        pytest.skip(f"no Prometheus here: {error}")


@pytest.fixture(scope="session")
def slurm() -> Iterator[slurm_daemons.Slurm]:
    """Two nodes; the partition `high` preempts jobs of `low`, the default."""
    if missing := [name for name in slurm_daemons.PROGRAMS if slurm_daemons.find(name) is None]:
        pytest.skip(
            f"no Slurm here: {', '.join(missing)} not found (Debian: slurmctld slurmd munge)"
        )
    cluster = slurm_daemons.Slurm()
    try:
        try:
            cluster.start()
        except RuntimeError as error:
            if "Address already in use" not in str(error):
                raise
            cluster.stop()
            cluster = slurm_daemons.Slurm()  # with other ports
            cluster.start()
        yield cluster
    finally:
        cluster.stop()
