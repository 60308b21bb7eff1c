"""Laps on the host, and on a device whose events the test completes."""

from __future__ import annotations

import time
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
import torch

from hvdtrain.engine.stopwatch import Stopwatch


def test_laps_on_the_host() -> None:
    watch = Stopwatch(torch.device("cpu"), keep_laps=True)
    for _ in range(2):
        watch.start()
        time.sleep(0.01)
        watch.stop()
    laps = watch.laps()
    assert len(laps) == 2
    assert min(laps) >= 0.01
    assert watch.total_s == pytest.approx(sum(laps))
    assert watch.laps() == []


def test_a_paused_lap_is_one() -> None:
    watch = Stopwatch(torch.device("cpu"), keep_laps=True)
    began = time.perf_counter()
    for pause in (True, False):
        watch.start()
        time.sleep(0.01)
        watch.stop(pause=pause)
        assert bool(watch.total_s) is not pause
        time.sleep(0.1)
    [lap] = watch.laps()
    assert 0.02 <= lap < time.perf_counter() - began - 0.2 + 1e-3


class Event:
    """Stands in for a CUDA event: done when the test says so."""

    now_ms = 0.0
    done_until_ms = 0.0
    kept: ClassVar[WeakSet[Event]] = WeakSet()
    """Events that are still referenced."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        Event.kept.add(self)

    def record(self) -> None:
        self.at_ms = Event.now_ms

    def query(self) -> bool:
        return self.at_ms <= Event.done_until_ms

    def elapsed_time(self, other: Any) -> float:
        assert other.query(), "asked before it was done"
        return float(other.at_ms - self.at_ms)


def test_laps_on_a_device_are_known_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = Stopwatch(torch.device("cuda"), keep_laps=True)
    for began, ended in ((10.0, 14.0), (20.0, 21.0), (30.0, 38.0)):
        Event.now_ms = began
        watch.start()
        Event.now_ms = ended
        watch.stop()
    assert watch.total_s == 0.0
    Event.done_until_ms = 25.0
    assert watch.total_s == pytest.approx(0.005)
    assert watch.laps() == pytest.approx([0.004, 0.001])
    Event.done_until_ms = 99.0
    assert watch.laps() == pytest.approx([0.008])
    assert watch.total_s == pytest.approx(0.013)
    assert not Event.kept, "events of finished laps pile up"


def test_a_paused_lap_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Event.done_until_ms = 25.0
    watch = Stopwatch(torch.device("cuda"), keep_laps=True)
    for began, ended, pause in ((10.0, 14.0, True), (20.0, 21.0, True), (30.0, 38.0, False)):
        Event.now_ms = began
        watch.start()
        Event.now_ms = ended
        watch.stop(pause=pause)
    assert watch.laps() == []
    Event.done_until_ms = 99.0
    assert watch.laps() == pytest.approx([0.013])
    assert watch.total_s == pytest.approx(0.013)
