"""The history of a run: bounded in size, and correct."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hvdtrain.telemetry.history import LIMIT, History, finite, rounded


def test_a_short_history_is_kept_as_it_is() -> None:
    history = History(("epoch",), ("loss",))
    assert history.columns() == {"epoch": [], "loss": []}
    for i in range(LIMIT):
        history.add({"epoch": i / 8, "loss": 1 / (1 + i), "else": 7}, 2.5)
    found = history.columns()
    assert found["epoch"] == [i / 8 for i in range(LIMIT)]
    assert found["loss"] == pytest.approx([1 / (1 + i) for i in range(LIMIT)], rel=1e-5)


@pytest.mark.parametrize("count", [LIMIT + 1, 2 * LIMIT, 2 * LIMIT + 1, 37 * LIMIT + 11])
def test_a_long_one_is_averaged(count: int) -> None:
    rng = np.random.default_rng(0)
    values, seconds = rng.normal(size=count), rng.uniform(0.5, 2.0, count)
    history = History(("step",), ("value",))
    for i in range(count):
        history.add({"step": i, "value": values[i]}, seconds[i])
    size = 1
    while math.ceil(count / size) > LIMIT:
        size *= 2
    groups = [slice(i, min(i + size, count)) for i in range(0, count, size)]
    found = history.columns()
    assert LIMIT / 2 <= len(groups) <= LIMIT
    assert found["step"] == [group.stop - 1 for group in groups]
    means = [np.average(values[group], weights=seconds[group]) for group in groups]
    assert found["value"] == pytest.approx(means, rel=1e-5)


def test_values_that_are_not_numbers_are_none() -> None:
    history = History(("epoch",), ("loss", "efficiency"))
    nan, inf = math.nan, math.inf
    for loss, efficiency in ((1.0, None), (nan, inf), (-inf, "x"), (np.float32(2.0), 0.5)):
        history.add({"epoch": loss, "loss": loss, "efficiency": efficiency}, 1.0)
    history.add({}, 1.0)
    assert history.columns() == {
        "epoch": [1.0, None, None, 2.0, None],
        "loss": [1.0, None, None, 2.0, None],
        "efficiency": [None, None, None, 0.5, None],
    }
    assert finite(True) is None
    # A mean is over the known values.
    history = History((), ("loss",))
    for i in range(2 * LIMIT):
        history.add({"loss": nan if i % 2 else 3.0}, 1.0)
    assert history.columns() == {"loss": [3.0] * LIMIT}


def test_figures_are_short() -> None:
    rng = np.random.default_rng(0)
    values = rng.choice([-1, 1], 500) * 10 ** rng.uniform(-12, 12, 500)
    values[:4] = 0.0, 1e-320, 99999.96, 1 / 3
    for value, found in zip(values.tolist(), rounded(values), strict=True):
        assert found == pytest.approx(float(f"{value:.6g}"), rel=1e-14, abs=1e-300)
    assert json.dumps(rounded(values[[0, 2, 3]])) == "[0.0, 100000.0, 0.333333]"
    assert rounded(np.array([math.nan, math.inf, -math.inf])) == [None] * 3
