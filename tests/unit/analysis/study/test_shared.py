"""How work is shared, on one rank; tests/parallel/test_study.py has several."""

from __future__ import annotations

import pytest
import torch

from hvdtrain import activity
from hvdtrain.analysis.study.shared import led, shared_points
from hvdtrain.comm.ranks import Solo
from hvdtrain.errors import TrainingError


class Of(Solo):
    """One rank of several, whose part of the sums is all there is."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("count", [1, 2, 7, 40, 41, 100])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_point_is_evaluated_once(count: int, size: int) -> None:
    evaluated: list[int] = []
    parts = [
        shared_points(Of(rank, size), count, 1, lambda i: evaluated.append(i) or [i + 1.0])  # type: ignore[func-returns-value]
        for rank in range(size)
    ]
    assert sorted(evaluated) == list(range(count))
    assert torch.stack(parts).sum(0)[:, 0].tolist() == [i + 1 for i in range(count)]


def test_progress_says_how_much_time_is_left() -> None:
    activity.enter("points", 4, "points", time_left=True)
    assert activity.text() == "points, 0 of 4 points"
    texts: list[str] = []
    shared_points(Solo(), 4, 1, lambda _i: texts.append(activity.text()) or [0.0])  # type: ignore[func-returns-value]
    assert texts[2] == "points, 2 of 4 points, about 0 s left"


def test_the_leader_asks_until_it_is_done() -> None:
    def work(ask) -> float:
        return float(ask(torch.tensor([1.0, 2.0]).double())) + float(ask(torch.zeros(2)))

    assert led(Solo(), 2, torch.device("cpu"), lambda question: question.sum() + 10, work) == 23


def test_an_error_of_the_leader_is_one_of_all() -> None:
    def work(_ask) -> None:
        raise TrainingError("no")

    with pytest.raises(TrainingError, match="no") as error:
        led(Solo(), 2, torch.device("cpu"), torch.sum, work)
    assert error.value.everywhere
