"""A part of `make chaos`: real trainings with a fault each, to the end of the undisturbed run.

Two cases are fixed; the others are drawn anew for each commit: a few sorts of fault, and one of each.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator

import pytest

from tests.chaos.cases import (
    ALONE,
    EVALUATION,
    KINDS,
    MPIRUN,
    QUICK,
    SAVE,
    Case,
    draw,
    draw_quick,
)
from tests.chaos.course import Chaos, why_not
from tests.chaos.oracle import documented_codes, without_torchruns
from tests.chaos.table import line
from tests.launch import REPOSITORY

CASES = [
    Case(1, "kill-rank", SAVE, 2, MPIRUN),
    Case(2, "run-removed", EVALUATION, 2, MPIRUN),
]
DRAWN = 4
"""Sorts of fault in a run of the tests, of the nine in QUICK: a case takes up to a minute."""
TRIES = 3
"""Of a case whose training ended before the fault could strike it."""


def seed() -> int:
    """HVDTRAIN_CHAOS_SEED, or a number of the commit; 0 outside of a repository."""
    if given := os.environ.get("HVDTRAIN_CHAOS_SEED"):
        return int(given)
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short=6", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return 0
    return int(done.stdout.strip()[:6], 16) if done.returncode == 0 else 0


def drawn() -> list[Case]:
    """Cases for this commit, each of another sort."""
    cases = draw_quick(seed(), lambda case: why_not(case) is None)
    return random.Random(seed()).sample(cases, min(DRAWN, len(cases)))


def name(case: Case) -> str:
    """With the seed by which it can be run again."""
    return f"{case.seed}-{case.fault}-{case.moment.replace(' ', '-')}-{case.ranks}-{case.launcher}"


@pytest.fixture(scope="module")
def chaos() -> Iterator[Chaos]:
    chaos = Chaos()
    yield chaos
    chaos.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_a_fault(case: Case, chaos: Chaos) -> None:
    result = chaos.run(case)
    assert result.verdict == "ok", line(result)


@pytest.mark.parametrize("case", drawn(), ids=name)
def test_a_drawn_fault(case: Case, chaos: Chaos) -> None:
    for _ in range(TRIES):
        result = chaos.run(case)
        if result.verdict != "missed":
            break
    again = f"again: python -m tests.chaos --ranks 2 --only {case.seed}"
    assert result.verdict in ("ok", "leak"), f"{line(result)}\n{again}"


def test_each_seed_draws_a_fault_of_each_sort() -> None:
    many = [draw_quick(seed) for seed in range(200)]
    for cases in many:
        assert [sum(case.fault in sort for case in cases) for sort in QUICK] == [1] * len(QUICK)
        assert all(case == draw(case.seed, most_ranks=2) for case in cases)
        assert max(case.ranks for case in cases) <= 2
    assert {case.fault for cases in many for case in cases} == {f for sort in QUICK for f in sort}


def test_as_many_seeds_as_faults_have_each_fault_once() -> None:
    for block in (0, 5):
        cases = [draw(seed) for seed in range(block * len(KINDS), (block + 1) * len(KINDS))]
        assert sorted(case.fault for case in cases) == sorted(KINDS)
        assert cases == [draw(case.seed) for case in cases]
        for case in cases:
            assert case.moment in case.kind.moments
            assert case.launcher in case.kind.launchers
            assert (case.ranks == 1) == (case.launcher == ALONE)


def test_expected_exit_codes_are_documented() -> None:
    assert documented_codes() >= {code for kind in KINDS.values() for code in kind.codes}


def test_tracebacks_of_torchrun_alone_are_left_out() -> None:
    place = "/x/site-packages/torch/distributed/elastic/multiprocessing/api.py"
    own = f'E1130 8:15:02 7 api.py:9] Traceback (most recent call last):\n  File "{place}", line 1\n    x()\n'
    ours = own + f'  File "{REPOSITORY}/hvdtrain/train.py", line 2\n'
    assert without_torchruns(f"a\n{own}b\n") == "a\nb\n"
    assert without_torchruns(f"a\n{ours}b\n") == f"a\n{ours}b\n"
    assert "Traceback" in without_torchruns(own.replace(place, "/x/pipelines/stream.py"))
