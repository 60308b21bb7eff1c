"""Ranks agree on a stop by a clock, and yet all call the same collectives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch

from hvdtrain import signals
from hvdtrain.comm import agreement
from hvdtrain.comm.agreement import AGREE_S, Stops
from hvdtrain.comm.ranks import Comm, Solo
from hvdtrain.signals import StopSignals


class Wire:
    """Sums of two ranks that run in one thread, one after the other in each step."""

    def __init__(self) -> None:
        self.started: list[list[torch.Tensor]] = []
        self.meet: Callable[[], object] = lambda: None
        """Called before a wait."""
        self._summing = threading.Lock()

    def start(self, tensor: torch.Tensor, number: int) -> Any:
        while len(self.started) <= number:
            self.started.append([])
        both, summing = self.started[number], self._summing
        both.append(tensor)

        class Handle:
            def wait(_self) -> None:  # noqa: N805
                self.meet()
                assert len(both) == 2, "a rank waits for a collective that the other has not called"
                with summing:
                    if both[0] is not both[1]:
                        total = both[0] + both[1]
                        for each in both:
                            each.copy_(total)
                        both[1] = both[0]

        return Handle()


class Rank:
    def __init__(self, wire: Wire, speed: float, rank: int = 0) -> None:
        self.size, self.rank, self._wire, self._count = 2, rank, wire, 0
        self.save_due = False
        self.now = 0.0
        self.speed = speed
        self.signals = StopSignals()
        self.stops = Stops(
            self.signals, cast("Comm", self), lambda: self.now, lambda: self.save_due
        )

    def sum_async_(self, tensor: torch.Tensor, name: str) -> Any:
        assert name == "stop"
        self._count += 1
        return self._wire.start(tensor, self._count - 1)

    def step(self, seconds: float) -> bool:
        self.now += seconds * self.speed
        return self.stops.check()


@pytest.mark.parametrize("step_s", [0.002, 0.01, 0.15, 0.7, 3.0])
@pytest.mark.parametrize("skew", [1.0, 1.7])
def test_a_stop_is_known_on_both_within_a_second(step_s: float, skew: float) -> None:
    wire = Wire()
    one, two = Rank(wire, 1.0), Rank(wire, skew)
    for rank in (one, two):
        rank.stops.enter()
    for _ in range(int(10 / step_s)):
        assert not one.step(step_s)
        assert not two.step(step_s)
    calls = len(wire.started)
    assert calls <= 2 * 10 * skew / AGREE_S + 3
    two.signals.requested = True
    asked = one.now
    while True:
        known = [one.step(step_s), two.step(step_s)]
        assert known[0] == known[1]
        if known[0]:
            break
    assert one.now - asked <= AGREE_S + 3 * step_s
    assert len({len(each) for each in wire.started}) == 1


def test_the_clock_of_rank_0_decides_on_a_checkpoint() -> None:
    wire = Wire()
    one, two = Rank(wire, 1.0), Rank(wire, 1.7, rank=1)

    def step() -> bool:
        for rank in (one, two):
            rank.step(0.15)
        assert one.stops.saving == two.stops.saving
        return one.stops.saving

    two.save_due = True
    assert not any(step() for _ in range(20))
    one.save_due = True
    steps = 1
    while not step():
        steps += 1
    assert steps * 0.15 <= AGREE_S + 3 * 0.15
    # A question that is on the way when the checkpoint is made is about the one before.
    while one.stops._handle is None:
        step()
    one.save_due = False
    for rank in (one, two):
        rank.stops.saved()
    assert not any(step() for _ in range(20))
    assert not one.stops.agreed


def test_a_pass_with_slower_steps_begins_anew() -> None:
    wire = Wire()
    one, two = Rank(wire, 1.0), Rank(wire, 1.0)
    for seconds in (0.001, 2.0):
        for rank in (one, two):
            rank.stops.enter()
        for _ in range(2000 if seconds < 1 else 3):
            one.step(seconds)
            two.step(seconds)
    one.signals.requested = True
    began = one.now
    while not one.step(2.0) | two.step(2.0):
        pass
    assert one.now - began <= 4 * 2.0


@pytest.mark.parametrize("on_the_way", [False, True])
def test_between_two_epochs_both_know_at_once(on_the_way: bool) -> None:
    wire = Wire()
    one, two = ranks = Rank(wire, 1.0), Rank(wire, 1.0)
    if on_the_way:
        for rank in ranks:
            rank.step(0.1)
    assert (one.stops._handle is not None) == on_the_way
    two.signals.requested = True
    # Each rank waits for the other, as real ones do.
    arrived = threading.Barrier(2)
    wire.meet = arrived.wait
    with ThreadPoolExecutor(2) as pool:
        known = [*pool.map(lambda rank: rank.stops.settle(), ranks)]
    assert known == [True, True]
    assert {len(each) for each in wire.started} == {2}


def test_one_process_knows_at_once() -> None:
    signals_ = StopSignals()
    stops = Stops(signals_, Solo())
    assert not stops.check()
    assert not stops.settle()
    signals_.requested = True
    assert stops.settle()
    assert stops.check()
    assert not stops.saving
    stops = Stops(StopSignals(), Solo(), save_due=lambda: True)
    stops.check()
    assert stops.saving
    stops.saved()
    assert not stops.saving


def test_a_rank_whose_launcher_is_gone_stops_but_not_a_single_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agreement, "parent_gone", lambda: True)
    assert Rank(Wire(), 1.0).stops.requested
    assert not Stops(StopSignals(), Solo()).requested
    assert not signals.parent_gone()
