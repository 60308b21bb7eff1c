"""After a crash a job is started again; after anything that would repeat, or a signal, it is not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hvdtrain.cli.restarts import can_share, resumable, with_batch_ranks
from hvdtrain.config.load import load_config
from hvdtrain.errors import ConfigError
from hvdtrain.launch import supervise
from hvdtrain.launch.job import Ended
from hvdtrain.launch.supervise import Supervised, keep_note

DIGITS = "configs/demo_digits.yaml"


class Attempts:
    """Ends as it is told, and writes a checkpoint where `checkpoints` says so."""

    def __init__(self, codes: Sequence[int], checkpoints: Sequence[bool] = ()) -> None:
        self.codes, self.checkpoints = list(codes), list(checkpoints)
        self.started = 0
        self.newest: str | None = None
        self.told: list[str] = []
        self.signalled = False
        self.recalled: set[int] = set()

    def start(self, stopped: Callable[[], bool]) -> Ended:
        number, self.started = self.started, self.started + 1
        if number < len(self.checkpoints) and self.checkpoints[number]:
            self.newest = f"e{number:04}"
        return Ended(self.codes[number], self.signalled, recalled=number in self.recalled)

    def run(self, max_restarts: int) -> int:
        return Supervised(self.start, max_restarts, lambda: self.newest, self.told.append).run()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "FIRST_WAIT_S", 0.01)


@pytest.mark.parametrize("code", [1, 5, 70, 134, 137, 139, 205])
def test_a_crash_is_followed_by_another_attempt(code: int) -> None:
    job = Attempts([code, 0])
    assert job.run(3) == 0
    assert job.started == 2
    [line] = job.told
    assert line.startswith("attempt 1 ended after 0 s with exit code")
    assert str(code) in line


@pytest.mark.parametrize("code", [0, 2, 3, 4, 6, 7, 75])
def test_what_would_repeat_is_not(code: int) -> None:
    job = Attempts([code])
    assert job.run(3) == code
    assert job.told == []


def test_a_directory_that_the_attempt_before_still_holds() -> None:
    job = Attempts([137, 6, 6, 0])
    assert job.run(3) == 0


def test_restarts_without_a_new_checkpoint_are_bounded() -> None:
    job = Attempts([137] * 4)
    assert job.run(2) == 137
    assert job.started == 3
    assert job.told[-1].endswith("no restart is left of --max-restarts 2")
    assert "(SIGKILL)" in job.told[0]


def test_a_new_checkpoint_counts_anew() -> None:
    job = Attempts([137] * 6 + [0], [False, True, False, True, False, True, False])
    assert job.run(2) == 0
    assert job.started == 7


def test_the_wait_doubles_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "FIRST_WAIT_S", 1.0)
    waits: list[float] = []
    monkeypatch.setattr(supervise, "_waited", lambda s, stop: not waits.append(s))
    Attempts([5] * 10).run(9)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_no_restarts_unless_asked_for() -> None:
    job = Attempts([137])
    assert job.run(0) == 137
    assert job.told == []


def test_a_job_that_was_signalled_is_not_started_again() -> None:
    job = Attempts([137])
    job.signalled = True
    assert job.run(3) == 137
    assert job.started == 1


def test_a_recall_is_no_failure_and_a_crash_in_it_is_one() -> None:
    job = Attempts([75, 75, 137, 0])
    job.recalled = {0, 1, 2}
    assert job.run(1) == 0
    assert job.told[:2] == [
        f"attempt {number} stopped in order, to go on with more hosts" for number in (1, 2)
    ]
    assert job.told[2].startswith("attempt 3 ended after 0 s with exit code 137")


def test_a_signal_between_two_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "FIRST_WAIT_S", 60.0)
    job = Attempts([137])
    tell = job.told.append
    end = Supervised(
        job.start,
        3,
        lambda: None,
        lambda text: (tell(text), os.kill(os.getpid(), signal.SIGTERM))[0],
    )
    assert end.run() == 75
    assert "resume it with --resume" in job.told[-1]


def test_the_run_directory_of_all_attempts(tmp_path: Path) -> None:
    cfg = load_config(DIGITS)
    train = ["train", DIGITS]
    words, run_dir = resumable(train, cfg)
    assert run_dir.parent == Path("runs")
    assert run_dir.name.startswith("demo_digits-")
    assert words == [*train, "--run-dir", str(run_dir), "--resume", "auto"]
    for given in (["--run-dir", "r", "--resume", "auto"], ["--run-dir=r", "--resume=auto"]):
        assert resumable([*train, *given], cfg) == ([*train, *given], Path("r"))
    assert resumable(["train", "--resume", "r"], None) == (["train", "--resume", "r"], Path("r"))
    assert resumable([*train, "--run-dir", "r"], cfg)[0][-2:] == ["--resume", "auto"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "runs/x"], "only train can go on from a checkpoint, found eval"),
        (["train"], "give train a CONFIG"),
        (["train", DIGITS, "--resume", "never"], "not with --resume never"),
        (["train", DIGITS, "--resume", "auto"], "name the run by --run-dir DIR"),
    ],
)
def test_wrong_use(words: list[str], message: str) -> None:
    cfg = load_config(DIGITS) if DIGITS in words else None
    with pytest.raises(ConfigError, match=message):
        resumable(words, cfg)


def test_a_directory_that_holds_a_run(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("")
    with pytest.raises(ConfigError, match="holds a run already: add --resume auto"):
        resumable(["train", DIGITS, "--run-dir", str(tmp_path)], load_config(DIGITS))


@pytest.mark.parametrize("before", ["", '{"kind": "start"}\n', '{"kind": "start"}\n{"ki'])
def test_a_note_is_a_line_of_its_own(tmp_path: Path, before: str) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text(before)
    keep_note(events, "attempt 1 ended")
    last = json.loads(events.read_text().splitlines()[-1])
    assert (last["kind"], last["text"]) == ("note", "attempt 1 ended")
    keep_note(tmp_path / "missing/events.jsonl", "lost")
    assert not (tmp_path / "missing").exists()


def test_the_global_batch_stays_where_an_attempt_begins_anew_on_fewer_hosts() -> None:
    words, ranks = with_batch_ranks(["train", DIGITS], 8)
    assert (words, ranks) == (["train", DIGITS, "--batch-for-ranks", "8"], 8)
    assert with_batch_ranks([*words[:2], "--batch-for-ranks=4"], 8)[1] == 4
    with pytest.raises(
        ConfigError, match="--batch-for-ranks: expected a number of ranks, found 'x'"
    ):
        with_batch_ranks([*words[:2], "--batch-for-ranks", "x"], 8)
    cfg = load_config(DIGITS)
    total = cfg.phases[0].batch_per_worker * 8
    shareable = can_share(cfg, 8)
    assert [number for number in range(1, 9) if shareable(number)] == [
        number for number in range(1, 9) if total % number == 0
    ]
