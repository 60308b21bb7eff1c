"""What the watchdog counts, what it says of a thread, and who speaks: without waiting for anything."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hvdtrain.activity import Activity
from hvdtrain.comm.ranks import Solo
from hvdtrain.errors import StallError
from hvdtrain.run.guard import watchdog
from hvdtrain.run.guard.stall_files import StallFiles, bounded
from hvdtrain.run.guard.standing import Standing, standing
from hvdtrain.run.guard.watchdog import (
    FIRST,
    Watchdog,
    ask_about_images,
    leave_stacks_in,
    watching,
)
from pipelines.channel import Channel


class Dog(Watchdog):
    """A watchdog that is ticked by hand; `at` is what its rank is at."""

    def __init__(self, timeout_s: float, rank: int = 0, folder: Path | None = None) -> None:
        self.codes: list[int] = []
        self.present = Activity()
        self.at = Standing("in a test")
        super().__init__(timeout_s, rank, self.present, self.codes.append)
        if folder is not None:
            self.files = StallFiles(folder, ["a", "a", "b"])

    def _standing(self) -> Standing:
        return self.at

    def sleep(self, seconds: float) -> None:
        for _ in range(round(seconds / self.tick_s)):
            if not self.codes:
                self.tick()


def test_progress_of_any_kind_keeps_a_rank_going() -> None:
    dog = Dog(20)
    dog.present.enter("epoch 1", 3)
    for _ in range(3):
        for sign in (lambda: dog.present.step(1), dog.present.beat, lambda: dog.present.enter("x")):
            dog.sleep(19)
            sign()
    assert dog.codes == []
    dog.sleep(21)
    assert dog.codes == [StallError.exit_code] == [8]


def test_the_first_step_gets_longer() -> None:
    dog = Dog(20)
    dog.present.enter("epoch 1", 3)
    dog.present.beat()
    dog.sleep(20 * FIRST - 1)
    assert dog.codes == []
    dog.present.step(1)
    assert dog.limit_s == 20
    slow = Dog(20)
    slow.sleep(20 * FIRST + 1)
    assert slow.codes == [8]


def test_a_process_that_was_suspended_has_not_ticked(monkeypatch: pytest.MonkeyPatch) -> None:
    """However far the clocks have gone meanwhile."""
    dog = Dog(20)
    dog.present.step(1)
    dog.tick()
    dog.sleep(10)
    monkeypatch.setattr("time.monotonic", lambda: 1e9)
    dog.sleep(8)
    assert dog.codes == []


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_stacks_are_written_at_half_time_and_go_with_the_stall(tmp_path: Path) -> None:
    dog = Dog(20, rank=1, folder=tmp_path / "stalls")
    dog.present.step(1)
    dog.tick()
    dog.sleep(9)
    assert written(tmp_path / "stalls") == []
    dog.sleep(2)
    assert written(tmp_path / "stalls") == ["rank-1.txt"]
    first = (tmp_path / "stalls/rank-1.txt").read_text().splitlines()
    assert json.loads(first[0]) == {
        "rank": 1,
        "doing": "in a test",
        "for_ranks": False,
        "told": False,
    }
    assert f"0x{threading.get_ident():016x}" in first[2]
    assert any(f"{Path(__file__).name}" in line for line in first[3:])
    assert "All threads:" in first
    dog.present.beat()
    dog.tick()
    assert not (tmp_path / "stalls").exists()


def line_of(dog: Dog, capsys: pytest.CaptureFixture[str]) -> str:
    dog.present.enter("epoch 3", 100)
    dog.present.step(12)
    dog.tick()
    dog.sleep(60)
    assert dog.codes == [8]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("hvdtrain: error: rank ")
    assert "no progress for 20 s (train.stall_timeout) at epoch 3, after step 12 of 100: " in line
    return line


def test_a_rank_that_waits_names_the_one_without_a_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dog = Dog(20, folder=tmp_path)
    dog.at = Standing("waiting for the other ranks", for_ranks=True)
    dog.files.write(2, dog.at, 0, None)  # type: ignore[union-attr]
    line = line_of(dog, capsys)
    assert ": waiting for rank 1 on a, of which there is no sign: stopped, or its host" in line
    assert f"its stacks are in {tmp_path}/rank-0.txt" in line


def test_a_rank_that_waits_names_the_one_that_is_at_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dog = Dog(20, folder=tmp_path)
    dog.at = Standing("waiting for the other ranks", for_ranks=True)
    dog.files.write(1, dog.at, 0, None)  # type: ignore[union-attr]
    dog.files.write(2, Standing("waiting for images: reading x.jpg"), 0, None)  # type: ignore[union-attr]
    assert ": waiting for rank 2 on b: waiting for images: reading x.jpg; " in line_of(dog, capsys)


def test_a_rank_that_goes_on_after_another_has_told_is_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """mpirun lets a stopped rank go on before it ends it."""
    first, late = Dog(20, folder=tmp_path), Dog(20, rank=1, folder=tmp_path)
    first.at = Standing("waiting for the other ranks", for_ranks=True)
    assert ": waiting for rank 1 on a" in line_of(first, capsys)
    late.present.step(1)
    late.tick()
    late.sleep(60)
    assert late.codes == [8]
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "rank-0.txt").read_text().splitlines()[0])["told"]


def test_all_wait_for_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dog = Dog(20, folder=tmp_path)
    dog.at = Standing("waiting for the other ranks", for_ranks=True)
    for rank in (1, 2):
        dog.files.write(rank, dog.at, 0, None)  # type: ignore[union-attr]
    assert "which all wait as well: look at the network" in line_of(dog, capsys)


def test_the_culprit_speaks_first_and_lower_ranks_before_higher() -> None:
    def time_of(rank: int, for_ranks: bool) -> int:
        dog = Dog(20, rank)
        dog.at = Standing("x", for_ranks)
        dog.present.step(1)
        dog.tick()
        ticks = 0
        while not dog.codes:
            dog.tick()
            ticks += 1
        return ticks

    order = [time_of(0, False), time_of(1, False), time_of(0, True), time_of(1, True)]
    assert order == sorted(set(order))
    assert order[0] == 20


def test_a_rank_that_the_launcher_ends_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notices = iter([True, False, True])  # the first is of a suspension
    monkeypatch.setattr(watchdog, "noticed", lambda: next(notices, False))
    dog = Dog(20, rank=2)
    dog.at = Standing("waiting for the other ranks", for_ranks=True)
    dog.present.step(1)
    dog.tick()
    dog.sleep(60)
    assert dog.codes == [8]
    assert capsys.readouterr().err == ""


def said(function: Callable[[], object], part: str) -> str:
    """What is said of a thread in `function`, once it has `part`."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    while part not in (doing := at(thread)):
        assert thread.is_alive(), doing
        time.sleep(0.001)
    return doing


def at(thread: threading.Thread) -> str:
    return standing(sys._current_frames().get(thread.ident or 0), "reading x.jpg").doing


def test_a_thread_that_waits_for_images() -> None:
    channel: Channel[int] = Channel(1)
    assert said(channel.get, "images") == "waiting for images: reading x.jpg"
    channel.close()


def test_a_thread_in_code_of_ours_or_of_others() -> None:
    box: queue.Queue[int] = queue.Queue()
    assert said(box.get, "outside") == "outside of hvdtrain's own code"
    line = said(lambda: bounded(box.get, 60), "hvdtrain.run")
    assert line.startswith("in hvdtrain.run.guard.stall_files, line ")
    assert line.endswith("(bounded)")
    box.put(1)
    box.put(2)


def test_a_disk_that_hangs_holds_nobody_up() -> None:
    release = threading.Event()
    assert bounded(lambda: release.wait(20), 0.05) is None
    release.set()
    assert bounded(lambda: 1 / 0) is None
    assert bounded(lambda: 7) == 7


def test_a_job_has_one_watchdog(tmp_path: Path) -> None:
    with watching(0, 0):
        assert watchdog._watchdog is None
    with watching(60, 0):
        first = watchdog._watchdog
        assert first is not None
        with watching(60, 3):
            leave_stacks_in(tmp_path, Solo())
            ask_about_images(lambda: "reading y.jpg")
            assert watchdog._watchdog is first
            assert first.rank == 3
            assert first.images() == "reading y.jpg"
            assert first.files is not None
            assert first.files.hosts == [os.uname().nodename]
        assert first._thread.is_alive()
    assert not first._thread.is_alive()
    assert watchdog._watchdog is None
