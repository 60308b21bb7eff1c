"""Random datasets with planted oddities, on two ranks: both see the same and share it out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hypothesis import HealthCheck, given, settings

# ruff: noqa: B023 - each function is called in its own round of the loop
from tests.launch import REPOSITORY, mpirun, run
from tests.unit.pipelines.odd_datasets import Odd, lists, trees, write_list, write_tree

WORKER = REPOSITORY / "tests/parallel/odd_datasets_worker.py"
COUNT = 20


def make(root: Path) -> list[Odd]:
    """`COUNT` datasets that are not refused, half of them lists."""
    made: list[Odd] = []
    for strategy, write in ((trees(), write_tree), (lists(), write_list)):
        kind: list[Odd] = []

        @given(plan=strategy)
        @settings(
            max_examples=3 * COUNT,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        def fill(plan):
            if len(kind) < COUNT // 2:
                folder = root / f"{write.__name__}-{len(list(root.iterdir()))}"
                folder.mkdir()
                odd = write(plan, folder)
                kind.extend([] if odd.refused else [odd])

        fill()
        made += kind
    return made


def test_two_ranks_see_the_same_and_use_each_sample_once(tmp_path):
    made = make(tmp_path)
    assert len(made) == COUNT
    done = run(mpirun(2, sys.executable, WORKER, *(odd.path for odd in made)), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == [2, [odd.samples.total() for odd in made]]
