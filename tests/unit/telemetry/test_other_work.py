"""A program that uses the cores of a run is named once, by the kernel's counts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvdtrain.telemetry import other_work
from hvdtrain.telemetry.other_work import SHORTEST_S, OtherWork

TICKS = os.sysconf("SC_CLK_TCK")


def counts(stat: Path, busy_s: float, idle_s: float) -> None:
    core = min(os.sched_getaffinity(0))
    mine = f"cpu{core} {busy_s * TICKS:.0f} 0 0 {idle_s * TICKS:.0f} 5 0 0 0 0 0"
    stat.write_text(f"cpu  1 2 3\n{mine}\ncpu9999 100000 0 0 0 0 0 0 0 0 0\nintr 1 2\n")


@pytest.mark.parametrize(
    ("busy_s", "own_s", "others"),
    [(8.0, 7.0, None), (10.0, 5.0, "0.5"), (10.0, 10.1, None), (9.0, 0.0, "0.9")],
)
def test_only_much_other_work_is_named(
    tmp_path: Path, busy_s: float, own_s: float, others: str | None
) -> None:
    now = {"clock": 100.0, "own": 3.0}
    stat = tmp_path / "stat"
    counts(stat, 50, 50)
    work = OtherWork(True, stat, lambda: now["clock"], lambda: now["own"])
    now["clock"] += SHORTEST_S / 2
    assert work.note() is None
    now["clock"] += 10 - SHORTEST_S / 2
    now["own"] += own_s
    counts(stat, 50 + busy_s, 60 - busy_s)
    text = work.note()
    assert (text is None) == (others is None)
    assert others is None or f"other programs use {others} of" in str(text)
    now["clock"] += 10
    counts(stat, 70, 50)
    assert (work.note() is None) == (others is not None)  # once


def test_no_kernel_counts_no_warning(tmp_path: Path) -> None:
    now = [0.0]
    work = OtherWork(True, tmp_path / "missing", lambda: now[0], lambda: 0.0)
    now[0] = 60.0
    assert work.note() is None


def test_a_real_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_work, "SHORTEST_S", 1.0)
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    try:
        work = OtherWork(True)
        time.sleep(1.5)
        text = work.note()
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert text is not None
    assert "train.compute_threads=1" in text
