"""Tests of two means and Holm's correction against published values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hvdtrain.analysis.compare.significance import holm, paired, welch

SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)
"""Student 1908, Biometrika 6, table on p. 20; results of R's t.test on it are in R's own documentation."""


def test_welch() -> None:
    found = welch(*SLEEP)
    assert found is not None
    assert found.method == "Welch"
    numbers = [found.difference, found.low, found.high]
    assert numbers == pytest.approx([-1.58, -3.3654832, 0.2054832])
    assert found.freedom == pytest.approx(17.776, abs=5e-4)
    assert found.p == pytest.approx(0.07939, abs=5e-6)


def test_paired() -> None:
    found = paired(*SLEEP)
    assert found is not None
    assert found.method == "paired"
    numbers = [found.freedom, found.difference, found.low, found.high]
    assert numbers == pytest.approx([9, -1.58, -2.4598858, -0.7001142])
    assert found.p == pytest.approx(0.002833, abs=5e-7)


def test_unequal_numbers() -> None:
    found = welch([1.0, 2.0], [3.0, 4.0, 5.0, 6.0])
    assert found is not None
    assert found.difference == pytest.approx(-3.0)
    # by hand: variances 1/2 and 5/3, of means 1/4 and 5/12; df by Welch-Satterthwaite
    a, b = 1 / 4, 5 / 12
    assert found.freedom == pytest.approx((a + b) ** 2 / (a**2 / 1 + b**2 / 3))


def test_as_scipy_says() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        sizes = draw.integers(2, 9, 2)
        a, b = (draw.normal(draw.normal(), draw.uniform(0.1, 3), n) for n in sizes)
        pairs = [(welch(a, b), stats.ttest_ind(a, b, equal_var=False))]
        n = min(sizes)
        pairs += [(paired(a[:n], b[:n]), stats.ttest_rel(a[:n], b[:n]))]
        for found, known in pairs:
            assert found is not None
            interval = known.confidence_interval(0.95)
            wanted = [known.pvalue, known.df, interval.low, interval.high]
            assert [found.p, found.freedom, found.low, found.high] == pytest.approx(wanted)


def test_without_spread_there_is_no_test() -> None:
    assert welch([0.5, 0.5], [0.6, 0.6, 0.6]) is None
    assert welch([0.5, 0.5], [0.6, 0.7]) is not None
    assert paired([0.5, 0.6], [0.6, 0.7]) is None
    assert paired([0.5, 0.6], [0.5, 0.6]) is None
    assert welch([0.0, 0.0], [0.0, 0.0]) is None


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == [pytest.approx(p) for p in (0.03, 0.06, 0.06)]
    assert holm([0.04, 0.03, 0.02, 0.01]) == [pytest.approx(p) for p in (0.06, 0.06, 0.06, 0.04)]
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
