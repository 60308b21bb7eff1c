"""A bit that flips on one rank is found within two intervals, and what follows is what was asked for."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.launch import REPOSITORY, mpirun, run

WORKER = REPOSITORY / "tests/parallel/divergence_worker.py"
CONFIG = """
name: flip
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_cifar}}
lr: {{base: 0.01, warmup: none, schedule: constant}}
phases: [{{epochs: 2, image_size: 16, batch_per_worker: 1}}]
train: {{log_every: 4, compare_every: 2, ema_decay: 0.9}}
comm: {{preflight: false}}
metrics: {{enabled: false}}
"""
SPIKE = [
    *("train.loss_spike=10", "phases.0.epochs=12", "phases.0.batch_per_worker=3"),
    *("checkpoint.every_steps=42", "data.val=null"),
]
"""4 steps are an epoch; a checkpoint is written after the second step of the spike."""
ONLY_EPOCHS = "train.compare_every=1000"


class Result(NamedTuple):
    """Exit code and message, the same on all ranks; whether their states are equal at the end."""

    code: int
    text: str
    equal: bool
    warnings: list[str]
    """Of what this file is about."""


def results(
    ranks: int, cases: list[tuple[int | None, str, list[str]]], root: Path, folder: Path
) -> list[Result]:
    (folder / "flip.yaml").write_text(CONFIG.format(root=root))
    command = [sys.executable, WORKER, "flip.yaml", json.dumps(cases), "results.json"]
    done = run(mpirun(ranks, *command), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    found = []
    by_case: list[list[Any]] = json.loads((folder / "results.json").read_text())
    for number, by_rank in enumerate(by_case):
        assert len(by_rank) == ranks
        assert all(each == by_rank[0] for each in by_rank[1:])
        code, text, digests = by_rank[0]
        lines = (folder / f"runs/{number}/events.jsonl").read_text().splitlines()
        notes = [event["text"] for event in map(json.loads, lines) if event["kind"] == "note"]
        equal = all(row == digests[0] for row in digests)
        found.append(
            Result(
                code,
                text,
                equal,
                [note for note in notes if re.search(r" other |; rollback |^went back ", note)],
            )
        )
    return found


def test_two_ranks(small_root: Path, tmp_path: Path) -> None:
    cases = [
        (None, "weights", []),
        (1, "weights", []),
        (1, "weights", ["train.on_divergence=majority"]),
        (1, "images", []),
        (1, "images", ["train.rollbacks=1", "phases.0.batch_per_worker=6"]),
        (0, "averages", [ONLY_EPOCHS, "checkpoint.every_epochs=1", "data.val=null"]),
        (0, "jump", [*SPIKE, "train.rollbacks=1"]),
        (0, "jump", SPIKE),
    ]
    found = results(2, cases, small_root, tmp_path)
    fine, stopped, undecided, nan, rolled_back, saved, jumped, ended = found
    assert (fine.code, fine.text, fine.equal, fine.warnings) == (0, "", True, [])
    for result in (stopped, undecided):
        assert result.code == 9
        assert re.match(
            r"rank 0 on \S+, rank 1 on \S+ got different weights, and with two ranks none can be "
            r"called the wrong one, between updates 3 and 4: .*, then start again$",
            result.text,
        )
    assert nan.code == 7
    assert re.search(
        r"the loss is nan at .*; first in step 3 on rank 1, with the images \S+jpg$", nan.text
    )
    assert rolled_back.code == 0
    assert rolled_back.equal
    back, note = rolled_back.warnings
    assert back.startswith("went back to runs/4/checkpoints/e0001-s0000000000: ")
    assert "; first in step 3 on rank 1, with the images " in note
    assert "and 2 more; rollback 1 of 1: these weights go on with the images after step 4" in note
    assert saved.code == 9  # at the first checkpoint, which is not written
    assert "got different averaged weights" in saved.text
    assert not list((tmp_path / "runs/5/checkpoints").iterdir())
    assert (jumped.code, jumped.equal) == (0, True)
    back, note = jumped.warnings
    # Not to the one that was saved in the spike, before it was sure, nor to the one before its first step.
    assert back.startswith("went back to runs/6/checkpoints/e0009-s0000000000: ")
    assert re.match(
        r"warning: the loss is \S+ in step 43, the last of 3 in a row above .*; it began in step 41 on "
        r"rank [01], where it was highest, with the images \S+jpg, \S+jpg, \S+jpg; rollback 1 of 1: .* after step 44$",
        note,
    )
    events = map(json.loads, (tmp_path / "runs/6/events.jsonl").read_text().splitlines())
    assert [event for event in events if event["kind"] == "train"][-1]["loss"] < 1
    assert ended.code == 7
    assert "; it began in step 41 on rank " in ended.text


def test_three_ranks(small_root: Path, tmp_path: Path) -> None:
    majority = "train.on_divergence=majority"
    cases = [
        (1, "weights", []),
        (0, "optimizer", [majority]),
        (2, "weights", [majority, ONLY_EPOCHS]),
        (1, "weights", ["train.on_divergence=warn"]),
    ]
    stopped, repaired, evaluated, warned = results(3, cases, small_root, tmp_path)
    assert stopped.code == 9
    assert re.match(
        r"rank 1 on \S+ got other weights than the other 2 ranks between updates 3 and 4: ",
        stopped.text,
    )
    assert repaired.code == evaluated.code == warned.code == 0
    assert repaired.equal
    assert evaluated.equal
    assert not warned.equal
    [note] = repaired.warnings
    assert re.match(
        r"warning: rank 0 on \S+ got other optimizer state than the other 2 ranks between updates "
        r"3 and 4; it took those of rank 1: ",
        note,
    )
    [note] = evaluated.warnings
    assert "rank 2 on" in note
    assert "between updates 1 and 8" in note  # the evaluation at the end of the epoch
    assert len(warned.warnings) > 1
