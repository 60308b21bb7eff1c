"""Measured points and their predictions equal sums by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hvdtrain.errors import ResourceError
from hvdtrain.scaling.compare import Message, between, compare, fit, read_measured

POINT = {
    "hosts": 2,
    "ranks_per_host": 1,
    "link_gbit": 1.0,
    "model": "two",
    "groups": [1e6, 3e6],
    "release_s": [0.02, 0.05],
    "compute_s": 0.06,
    "step_s": 0.088,
    "allreduce": [{"bytes": 1e6, "seconds": 0.011}, {"bytes": 3e6, "seconds": 0.031}],
}


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_measured_point_is_predicted_from_its_messages(tmp_path: Path) -> None:
    """1 ms and 100 MB/s: the second message takes 31 ms from 50 ms on, computing ends at 60 ms."""
    other = {"trainer": "DDP", "hosts": 2, "step_s": 0.1}
    for content in ([POINT], {"points": [POINT]}, [other, {**POINT, "trainer": "hvdtrain"}]):
        (measured,) = read_measured(write(tmp_path / "m.json", content))
        found = compare(measured)
        assert found.latency_s == pytest.approx(1e-3)
        assert found.bytes_per_s == pytest.approx(1e8)
        assert found.predicted_s == pytest.approx(0.06 + 0.031)
        assert found.error == pytest.approx(0.091 / 0.088 - 1)
    assert compare(measured.model_copy(update={"step_s": 1.0})).predicted_s == found.predicted_s


def test_the_fit_is_least_squares_of_relative_errors() -> None:
    import numpy as np

    random = np.random.default_rng(0)
    sizes = random.uniform(1e5, 1e8, 40)
    seconds = (2e-3 + sizes / 1e8) * random.uniform(0.9, 1.1, 40)
    messages = [
        Message(bytes=float(s), seconds=float(t)) for s, t in zip(sizes, seconds, strict=True)
    ]
    design = np.stack([1 / seconds, sizes / seconds], axis=1)
    expected = np.linalg.lstsq(design, np.ones(40), rcond=None)[0]
    assert fit(messages) == pytest.approx(tuple(expected), rel=1e-6)
    down = [Message(bytes=1e6, seconds=0.01), Message(bytes=4e6, seconds=0.05)]
    latency_s, slope = fit(down)  # a line through them would start below 0
    assert latency_s == 0
    assert 0.01 / 1e6 < slope < 0.05 / 4e6


def test_between_measured_sizes_the_cost_is_a_straight_line() -> None:
    cost = between(
        [
            Message(bytes=1e6, seconds=0.01),
            Message(bytes=2e6, seconds=0.03),
            Message(bytes=2e6, seconds=0.05),
            Message(bytes=8e6, seconds=0.16),
        ]
    )
    assert [cost(x) for x in (1e6, 1.5e6, 2e6, 5e6, 8e6)] == pytest.approx(
        [0.01, 0.025, 0.04, 0.1, 0.16]
    )
    assert cost(16e6) == pytest.approx(0.32, rel=0.02)
    assert 0 <= cost(0.0) < cost(0.5e6) < 0.01


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"groups": [1e6]}, "2 release_s of 1 groups"),
        ({"release_s": [0.05, 0.02]}, "must rise"),
        ({"release_s": [0.05, 0.07]}, "must rise, up to compute_s"),
        ({"allreduce": [{"bytes": 1e6, "seconds": 1.0}] * 2}, "two sizes"),
        ({"hosts": 0}, "hosts"),
    ],
)
def test_a_wrong_point_is_one_line(wrong: dict[str, object], message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "m.json", [POINT, {**POINT, **wrong}])
    with pytest.raises(ResourceError, match=message) as error:
        read_measured(file)
    assert "point 1" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"points": 3}'])
def test_another_file_is_no_list_of_points(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ResourceError, match=r"docs/explanation/scaling\.md"):
        read_measured(tmp_path / "m.json")
