"""Signs of life: when they are due, and where a line may be rewritten."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hvdtrain import activity
from hvdtrain.activity import Activity
from hvdtrain.telemetry.console import bar_line, train_parts
from tests.made_reports import train


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_is_due_within_two_seconds_of_the_last_output() -> None:
    clock = Clock()
    present = Activity(clock)
    present.enter("listing the images")
    clock.now = 1.5
    assert 0 < present.due_in() < 0.5
    present.shown()
    clock.now = 3.5
    assert present.due_in() <= 0
    assert present.text() == "listing the images, 4 s"
    present.enter("epoch 1", 100)
    present.step(7)
    assert present.text() == "epoch 1, step 7 of 100"


def test_lines_are_shown_until_the_end() -> None:
    clock, ended, lines = Clock(), threading.Event(), list[str]()
    present = Activity(clock)
    present.enter("decoding")
    clock.now = 2.0

    def show(text: str) -> None:
        lines.append(text)
        ended.set()

    activity.show_until(ended, present, show)
    assert lines == ["decoding, 2 s"]


@pytest.mark.parametrize("tagged", [False, True])
def test_a_prefix_before_each_line_counts_against_a_bar(
    tagged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fd").mkdir()
    (tmp_path / "fd/1").symlink_to("/dev/pts/3")
    words = ["mpirun", *(["--tag-output"] if tagged else []), "hvdtrain", ""]
    (tmp_path / "cmdline").write_text("\0".join(words))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert activity.watched({"OMPI_COMM_WORLD_SIZE": "2"}, tmp_path) is not tagged


@pytest.mark.parametrize("width", [20, 39, 60, 79, 120, 200])
def test_a_line_fits_and_keeps_what_is_being_done(width: int) -> None:
    line = bar_line(0.5, [("activity", "epoch 2"), *train_parts(train())], width)
    assert len(line) <= width
    assert " 50%" in line
    assert "epoch 2" in line


def test_parts_leave_in_a_fixed_order() -> None:
    parts = [("activity", "epoch 2"), *train_parts(train())]
    kept = [
        {name for name, text in parts if text in bar_line(0.5, parts, width)}
        for width in range(220, 30, -1)
    ]
    assert all(after <= before for before, after in itertools.pairwise(kept))


def test_a_fault_of_the_config_comes_before_anything_slow_is_imported() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['hvdtrain', 'train', 'nothing.yaml']\n"
        "from hvdtrain.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code == 2, end.code\n"
        "heavy = {'torch', 'horovod', 'nvidia', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
