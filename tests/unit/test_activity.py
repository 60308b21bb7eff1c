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
from hvdtrain.cli.progress import counting
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.telemetry.console import bar_line, train_parts
from hvdtrain.train import train as train_run
from tests.made_reports import train

CONFIG = """
name: tiny
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_cifar}}
lr: {{base: 0.1, warmup: none, schedule: constant}}
phases: [{{epochs: 3, image_size: 16, batch_per_worker: 11}}]
metrics: {{enabled: false}}
"""


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


def test_the_first_images_are_decoded_once_an_attempt(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    monkeypatch.setattr(activity, "enter", lambda stage, *_: stages.append(stage))
    config = CONFIG.format(root=small_root)
    train_run(parse_config(config), Solo(), run_dir=tmp_path)
    assert stages.count("decoding the first images") == 1
    assert stages.index("decoding the first images") < stages.index("epoch 1")
    assert {"epoch 2", "epoch 3", "evaluating", "writing a checkpoint"} < {*stages}


def test_what_is_counted_is_named() -> None:
    with counting("packing", "images") as count:
        assert activity.text() == "listing the dataset"
        count(0, 2000)
        assert activity.text() == "packing, 0 of 2,000 images"
        count(1500, 2000)
        assert activity.text() == "packing, 1,500 of 2,000 images"
        count(2000, 2000)
        assert activity.text() == "packing: finishing"
    with counting("staging", "bytes") as count:
        count(10**9, 2 * 10**9 + 1)
        assert activity.text() == "staging, 1,000 of 2,001 MB"


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
