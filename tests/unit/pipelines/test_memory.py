"""Memory stays where it is over many changes of image size and batch."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.launch import REPOSITORY
from tests.unit.pipelines.samples import photograph

WORKER = Path(__file__).parent / "memory_worker.py"
CHANGES = 60
SPREAD_MIB = 120
"""Largest batches in flight take 80 above the first; with an arena for each thread it is 155."""


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """48 images of 200 to 500 pixels a side."""
    (tmp_path / "a").mkdir()
    for k in range(48):
        height, width = np.random.default_rng(k).integers(200, 500, 2).tolist()
        photograph(k, height, width).save(tmp_path / "a" / f"{k}.jpg", quality=95)
    return tmp_path


def test_sixty_changes_of_size_and_batch_leave_memory_where_it_was(photographs):
    environment = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}
    done = subprocess.run(
        [sys.executable, WORKER, photographs, str(CHANGES)],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == CHANGES
    assert max(found) - found[0] <= SPREAD_MIB
    assert statistics.mean(found[40:]) - statistics.mean(found[20:40]) <= 20
