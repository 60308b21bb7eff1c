"""A fixed part of `make chaos`: real trainings with a fault each, to the end of the undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.cases import ALONE, EVALUATION, KINDS, MPIRUN, SAVE, Case, draw
from tests.chaos.course import Chaos
from tests.chaos.oracle import documented_codes
from tests.chaos.table import line

CASES = [
    Case(1, "kill-rank", SAVE, 2, MPIRUN),
    Case(2, "run-removed", EVALUATION, 2, MPIRUN),
]


@pytest.fixture(scope="module")
def chaos() -> Iterator[Chaos]:
    chaos = Chaos()
    yield chaos
    chaos.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_a_fault(case: Case, chaos: Chaos) -> None:
    result = chaos.run(case)
    assert result.verdict == "ok", line(result)


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
