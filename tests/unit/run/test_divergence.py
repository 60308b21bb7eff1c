"""Who is named when ranks differ, and when they are compared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hvdtrain.config.schema import Train
from hvdtrain.engine.progress import Progress
from hvdtrain.run.guard.divergence import (
    PACE_S,
    Comparison,
    describe,
    gather_digests,
    majority,
    shared_tensors,
)
from tests.step_samples import network, state_of

HOSTS = [f"node{rank // 2}" for rank in range(8)]
A, B, C = (1, 2, 3), (1, 9, 3), (7, 9, 3)


@pytest.mark.parametrize(
    ("rows", "root", "text"),
    [
        ([A, C, A], 0, "rank 1 on node0 got other weights than the other 2 ranks"),
        ([B, A, A], 1, "rank 0 on node0 got other optimizer state than the other 2 ranks"),
        (
            [A, A, (1, 2, 4), A],
            0,
            "rank 2 on node1 got other averaged weights than the other 3 ranks",
        ),
        (
            [A, C],
            None,
            "rank 0 on node0, rank 1 on node0 got different weights, and with two ranks none can "
            "be called the wrong one,",
        ),
        (
            [A, C, A, C],
            None,
            "rank 0 on node0, rank 1 on node0 got different weights, and with no majority none can "
            "be called the wrong one,",
        ),
        ([A, B, C], None, "rank 0 on node0, rank 1 on node0, rank 2 on node1 got different"),
        (
            [A] * 6 + [C, B],
            0,
            "rank 6 on node3, rank 7 on node3 got other weights than the other 6 ranks",
        ),
    ],
)
def test_the_odd_ranks_are_named(rows: list[tuple[int, ...]], root: int | None, text: str) -> None:
    assert majority(rows) == root
    assert describe(rows, HOSTS).startswith(text)


def comparison(every: int | None, size: int = 2) -> Comparison:
    """Of ranks whose states are made up by the tests."""
    state: Any = SimpleNamespace(comm=SimpleNamespace(size=size), progress=Progress())
    nothing: Any = None
    return Comparison(Train(compare_every=every), state, HOSTS[:size], nothing, nothing)


def compared_at(
    made: Comparison,
    first: int,
    last: int,
    step_s: float,
    monkeypatch: pytest.MonkeyPatch,
    cost_s: float = 0.0,
) -> list[int]:
    """The updates after which ranks are compared; there is a report every 20."""
    at: list[int] = []
    state: Any = made._state

    def gathered(_: Any) -> tuple[list[tuple[int, ...]], float]:
        at.append(state.progress.step)
        return [A, A], cost_s

    monkeypatch.setattr("hvdtrain.run.guard.divergence.gather_digests", gathered)
    for step in range(first, last + 1):
        state.progress = SimpleNamespace(step=step)
        if step % 20 == 0:
            made.pace(step_s)
        made.after_step()
    return at


def test_by_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    made = comparison(100)
    assert compared_at(made, 1001, 1350, 0.1, monkeypatch) == [1100, 1200, 1300]
    made.compare()
    made.compare()  # nothing was updated since


def test_about_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared_at(comparison(None), 1, 2000, 0.1, monkeypatch) == [600, 1200, 1800]
    slow = compared_at(comparison(None), 1, 100, 2 * PACE_S, monkeypatch)
    assert slow == [20, *range(21, 101)]


def test_less_often_where_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a thousandth of the time."""
    made = comparison(None)
    assert compared_at(made, 1, 4000, 0.1, monkeypatch, cost_s=0.12) == [600, 1800, 3000]


def test_a_single_process_compares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared_at(comparison(1, size=1), 1, 10, 1.0, monkeypatch) == []


def test_what_counts() -> None:
    """Weights and optimizer state, not the statistics of batch norm, which are each rank's own."""
    torch.manual_seed(0)
    state = state_of(network(norm=True))
    [before], _ = gather_digests(state)
    assert gather_digests(state)[0] == [before]
    shared = shared_tensors(state)
    buffers = {f"model.{name}" for name, _ in state.model.named_buffers()}
    assert len(buffers) == 3
    seen = set()
    for name, tensor in shared.items():
        saved = tensor.clone()
        with torch.no_grad():
            tensor.add_(1)
            [found], _ = gather_digests(state)
            tensor.copy_(saved)
        assert (found == before) is (name in buffers), name
        seen.add(tuple(a == b for a, b in zip(before, found, strict=True)))
    assert {(False, True, True), (True, False, True)} <= seen
