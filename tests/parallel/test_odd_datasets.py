"""Random datasets with planted oddities, on two ranks: both see the same and share it out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hypothesis import HealthCheck, given, settings

# ruff: noqa: B023 - each function is called in its own round of the loop
from tests.launch import REPOSITORY, mpirun, run
from tests.unit.pipelines.odd_datasets import Odd, trees, write_tree
from tests.unit.pipelines.odd_lists import lists, write_list
from tests.unit.pipelines.odd_shards import shard_sets, write_shards

WORKER = REPOSITORY / "tests/parallel/odd_datasets_worker.py"
KINDS = ((trees(), write_tree), (lists(), write_list), (shard_sets(), write_shards))
EACH = 7
MOST = 30
"""Examples for one that is not refused. Which come first depends on constants that hypothesis finds in the code."""


def make(root: Path) -> list[Odd]:
    """`EACH` datasets of every kind that are not refused."""
    made: list[Odd] = []
    for strategy, write in KINDS:
        kind: list[Odd] = []

        @given(plan=strategy)
        @settings(
            max_examples=MOST * EACH,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        def fill(plan):
            if len(kind) < EACH:
                folder = root / f"{write.__name__}-{len(list(root.iterdir()))}"
                folder.mkdir()
                odd = write(plan, folder)
                kind.extend([] if odd.refused or odd.unclear else [odd])

        fill()
        made += kind
    return made


def test_two_ranks_see_the_same_and_use_each_sample_once(tmp_path):
    made = make(tmp_path)
    assert len(made) == EACH * len(KINDS)
    done = run(mpirun(2, sys.executable, WORKER, *(odd.path for odd in made)), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == [2, [odd.samples.total() for odd in made]]
