"""Which checkpoints are kept when a new one is written, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvdtrain.checkpoint_files import list_checkpoints
from hvdtrain.checkpoint_keep import Keep, why_kept
from hvdtrain.engine.checkpoint import contents, metadata, write_checkpoint
from hvdtrain.engine.progress import Progress
from hvdtrain.engine.step import State
from hvdtrain.plan.epochs import Position
from tests.step_samples import network, state_of

TOP1 = {1: 0.1, 2: 0.7, 3: 0.5, 4: None, 5: 0.7, 6: 0.6, 7: 0.2}
"""By epoch; not every epoch is evaluated."""


def save(state: State, folder: Path, epoch: int, keep: Keep, sample: int = 0) -> Path:
    state.progress = Progress(Position(epoch, sample))
    top1 = None if sample else TOP1[epoch]
    meta = metadata(state, {}, {"top1": top1})
    return write_checkpoint(contents(state), meta, folder, keep).path


def epochs_left(folder: Path, keep: Keep) -> list[str]:
    """Epochs of the checkpoints that are left of one after each epoch and one in each, oldest first."""
    state = state_of(network())
    for epoch in TOP1:
        save(state, folder, epoch, keep)
        save(state, folder, epoch, keep, sample=20)
    names = [path.name.split("-s") for path in reversed(list_checkpoints(folder))]
    return [f"{int(epoch[1:])}{'+' if int(sample) else ''}" for epoch, sample in names]


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (Keep(1), ["7+"]),
        (Keep(3), ["6+", "7", "7+"]),
        (Keep(1, ends=2), ["6", "7", "7+"]),
        (Keep(1, best=1), ["5", "7+"]),
        (Keep(1, best=2), ["2", "5", "7+"]),
        (Keep(1, best=100), ["1", "2", "3", "5", "6", "7", "7+"]),
        (Keep(1, every=1), ["1", "2", "3", "4", "5", "6", "7", "7+"]),
        (Keep(1, every=3), ["3", "6", "7+"]),
        (Keep(1, every=8), ["7+"]),
        (Keep(1, ends=1, best=1, every=2), ["2", "4", "5", "6", "7", "7+"]),
    ],
)
def test_what_is_left(tmp_path: Path, keep: Keep, left: list[str]) -> None:
    assert epochs_left(tmp_path, keep) == left


def test_every_reason_is_given(tmp_path: Path) -> None:
    keep = Keep(1, ends=1, best=1, every=5)
    assert epochs_left(tmp_path, keep) == ["5", "7", "7+"]
    reasons = why_kept(list_checkpoints(tmp_path), keep)
    assert [*reasons.values()] == [
        ["last"],
        ["epoch end"],
        ["best, top-1 70.00 %", "every 5 epochs"],
    ]


def test_one_with_damaged_metadata_is_never_the_best(tmp_path: Path) -> None:
    state, keep = state_of(network()), Keep(1, best=1)
    best = save(state, tmp_path, 2, keep)
    (best / "meta.json").write_text("{")
    for epoch in (3, 4):
        save(state, tmp_path, epoch, keep)
    assert [path.name[:5] for path in list_checkpoints(tmp_path)] == ["e0004", "e0003"]
