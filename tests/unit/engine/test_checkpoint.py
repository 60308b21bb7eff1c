"""Checkpoints are whole or absent, every flipped bit is found, and what does not fit is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdtrain.checkpoint_keep import Keep
from hvdtrain.engine.checkpoint import (
    contents,
    list_checkpoints,
    load_checkpoint,
    metadata,
    save_checkpoint,
    sweep,
    verify,
    write_checkpoint,
)
from hvdtrain.engine.progress import Progress
from hvdtrain.engine.step import State, train_step
from hvdtrain.errors import CheckpointError, ResourceError
from hvdtrain.files import move_aside
from hvdtrain.optim import optimizer_tensors
from hvdtrain.plan.epochs import Position
from tests.step_samples import images, network, state_of

LABELS = {"model": "tiny", "classes": 7}


def trained(steps: int = 3) -> State:
    state = state_of(network(norm=True).to(memory_format=torch.channels_last))
    for step in range(steps):
        train_step(state, images(6, step), 0.1, 0.9)
    state.progress = Progress(Position(2, 60), state.progress.step, 180, 1.25)
    return state


def tensors_of(state: State) -> dict[str, torch.Tensor]:
    return {**state.model.state_dict(), **optimizer_tensors(state.model, state.optimizer)}


def test_training_after_a_round_trip_is_identical(tmp_path: Path) -> None:
    state = trained()
    path = save_checkpoint(state, tmp_path, 2, LABELS)
    assert path.name == "e0002-s0000000060"
    other = trained(0)
    load_checkpoint(other, path, verify(path), LABELS)
    assert other.progress == Progress(Position(2, 60), step=3, samples=180, train_seconds=1.25)
    for both in (state, other):
        train_step(both, images(6, 9), 0.1, 0.9)
    expected = tensors_of(state)
    for name, tensor in tensors_of(other).items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.stride() == expected[name].stride(), name


def test_another_model_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    path = save_checkpoint(trained(), tmp_path, 2, LABELS)
    for other, message in [
        (state_of(network(norm=False)), "made by another model"),
        (state_of(torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3))), "made by another model"),
    ]:
        before = {name: tensor.clone() for name, tensor in tensors_of(other).items()}
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(other, path, verify(path), LABELS)
        assert all(torch.equal(before[n], t) for n, t in tensors_of(other).items())
        assert other.progress == Progress()
    wider = state_of(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3, padding=1),
            torch.nn.BatchNorm2d(6),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(6 * 64, 9),
        )
    )
    with pytest.raises(
        CheckpointError, match=r"4\.weight is \[7, 384\], this model's is \[9, 384\]"
    ):
        load_checkpoint(wider, path, verify(path), LABELS)
    with pytest.raises(CheckpointError, match="its classes is 7, this run's is 9"):
        load_checkpoint(trained(), path, verify(path), {**LABELS, "classes": 9})


def test_the_newest_are_kept_and_epochs_in_order_of_position(tmp_path: Path) -> None:
    state = trained()
    for epoch, sample in [(0, 500), (1, 0), (9, 999), (10, 0), (10, 20)]:
        state.progress = Progress(Position(epoch, sample))
        save_checkpoint(state, tmp_path, 3, LABELS)
    names = [path.name for path in list_checkpoints(tmp_path)]
    newest = ["e0010-s0000000020", "e0010-s0000000000", "e0009-s0000000999"]
    assert names == [*newest, "e0001-s0000000000"]  # an end of an epoch, of which three are kept


def test_a_full_disk_is_named_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = trained()
    kept = save_checkpoint(state, tmp_path, 2, LABELS)
    state.progress = Progress(Position(3, 0))

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="checkpoint not written: No space left on device"):
        save_checkpoint(state, tmp_path, 2, LABELS)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    verify(kept)


SAVER = """
import os, pathlib, sys, torch
from tests.unit.engine.test_checkpoint import *
torch.set_num_threads(1)
state, folder = trained(), pathlib.Path(sys.argv[1])
for _ in sys.stdin:
    if child := os.fork():
        os.waitpid(child, 0)
        print("gone", flush=True)
        continue
    for epoch in range(10**6):
        state.progress = Progress(Position(epoch, 0))
        save_checkpoint(state, folder, 2, LABELS)
        if epoch == 3:
            print(os.getpid(), flush=True)
"""
"""For each line it starts a process that saves in an endless loop; importing torch takes longest."""


def test_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """A process that saves in an endless loop is killed; its checkpoints must verify."""
    command = [sys.executable, "-c", SAVER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], text=True, **pipes) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for delay in (0.0, 0.003, 0.007, 0.011, 0.017, 0.023):
            print(file=parent.stdin, flush=True)
            child = int(parent.stdout.readline())
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            assert parent.stdout.readline() == "gone\n"
            found = list_checkpoints(tmp_path)
            assert found
            for path in found:
                verify(path)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("hvdtrain.engine.checkpoint.FORMAT", 99)
        path = save_checkpoint(trained(), tmp_path, 2, LABELS)
    with pytest.raises(CheckpointError, match="format 99, this version reads 1"):
        verify(path)


def save_at(state: State, folder: Path, epoch: int, keep: int = 2) -> Path:
    state.progress = Progress(Position(epoch, 0))
    return save_checkpoint(state, folder, keep, LABELS)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_written_count_not_the_furthest(tmp_path: Path) -> None:
    state = trained()
    save_at(state, tmp_path, 9)
    earlier = save_at(state, tmp_path, 3, keep=1)
    assert list_checkpoints(tmp_path) == [earlier]
    again = save_at(state, tmp_path, 3, keep=1)
    assert list_checkpoints(tmp_path) == [again] == [earlier]
    verify(again)
    assert names_in(tmp_path) == ["e0003-s0000000000"]


def test_damaged_metadata_never_count_as_newest(tmp_path: Path) -> None:
    state = trained()
    (save_at(state, tmp_path, 9) / "meta.json").write_bytes(b"{")
    good = save_at(state, tmp_path, 3, keep=1)
    assert list_checkpoints(tmp_path) == [good]


def test_only_folders_with_names_of_our_own_are_deleted(tmp_path: Path) -> None:
    state = trained()
    foreign = ["e0001-s0000000000-copy", "e1-s1", "e0001-s0000000000.bak", "best", ".e1-s1.part"]
    foreign += ["damaged-e0001-s0000000000"]
    for name in foreign:
        (tmp_path / name).mkdir()
    for epoch in range(4):
        save_at(state, tmp_path, epoch, keep=1)
    sweep(tmp_path)
    assert names_in(tmp_path) == sorted([*foreign, "e0003-s0000000000"])


@pytest.mark.parametrize("calls", range(12))
def test_stopped_at_any_rename_the_same_place_has_a_whole_checkpoint(
    tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the process were killed before its call number `calls` that renames or deletes."""

    class Killed(BaseException):
        pass

    state = trained()
    save_at(state, tmp_path, 1, keep=1)
    left = [calls]

    def count(call: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return call(*args, **options)

        return counted

    with monkeypatch.context() as counted:
        for owner, name in ((Path, "rename"), (Path, "replace"), (shutil, "rmtree")):
            counted.setattr(owner, name, count(getattr(owner, name)))
        try:
            save_at(state, tmp_path, 1, keep=1)
        except Killed:
            assert calls < 11
    found = list_checkpoints(tmp_path)
    assert found
    for path in found:
        verify(path)
    sweep(tmp_path)
    assert names_in(tmp_path) == ["e0001-s0000000000"]
    verify(tmp_path / "e0001-s0000000000")


def test_an_old_checkpoint_that_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = trained()
    old = save_at(state, tmp_path, 1)
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == old:
            raise PermissionError(1, "Operation not permitted", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    files = {
        name: {k: t.contiguous() for k, t in part.items()} for name, part in contents(state).items()
    }
    state.progress = Progress(Position(2, 0))
    saved = write_checkpoint(files, metadata(state, LABELS), tmp_path, Keep(1))
    assert saved.kept == [f"{old}: cannot be deleted: Operation not permitted"]
    assert list_checkpoints(tmp_path) == [saved.path, old]
    assert saved.size == sum(file.stat().st_size for file in saved.path.iterdir())


def test_a_damaged_checkpoint_is_moved_aside(tmp_path: Path) -> None:
    for number in ("", "-2"):
        path = save_at(trained(), tmp_path, 1)
        assert move_aside(path).name == f"damaged-e0001-s0000000000{number}"
        assert list_checkpoints(tmp_path) == []
