"""Prometheus' own programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fetch_prometheus import FetchError, find_prometheus


@pytest.fixture(scope="session")
def prometheus_bin() -> Path:
    """The folder with prometheus and promtool."""
    try:
        return find_prometheus()
    except FetchError as error:
        pytest.skip(f"no Prometheus here: {error}")
