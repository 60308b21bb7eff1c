"""When checkpoints are due, and what the thread that writes them does and tells."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from hvdtrain import train as loop
from hvdtrain.checkpoint_files import list_checkpoints, read_meta
from hvdtrain.checkpoint_keep import Keep
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Checkpoint
from hvdtrain.engine.checkpoint import Saved
from hvdtrain.errors import CheckpointError, ConfigError, ResourceError
from hvdtrain.run import validation
from hvdtrain.run.snapshot_writer import Buffers, Writer
from hvdtrain.run.snapshots import SHORTEST_S, Cadence, Snapshots
from hvdtrain.train import train
from tests.unit.run.data_runs import config, notes, resume


@pytest.mark.parametrize(
    ("settings", "cost_s", "interval_s"),
    [
        ({}, 0.0, SHORTEST_S),
        ({}, 0.1, SHORTEST_S),
        ({}, 2.5, 250.0),
        ({}, 100.0, 600.0),
        ({"overhead": 0.1}, 30.0, 300.0),
        ({"every_minutes": 0.5}, 0.0, 30.0),
        ({"every_minutes": 60.0}, 12.0, 1200.0),
        ({"every_minutes": None}, 0.0, None),
    ],
)
def test_the_interval_follows_from_the_cost(
    settings: dict[str, Any], cost_s: float, interval_s: float | None
) -> None:
    now = 5.0
    cadence = Cadence(Checkpoint(**settings), lambda: now)
    now = 7.0
    cadence.saved(cost_s)
    assert cadence.interval_s == interval_s
    if interval_s is None:
        now = 1e9
        assert not cadence.due()
    else:
        now = 7.0 + interval_s - 0.01
        assert not cadence.due()
        now = 7.0 + interval_s
        assert cadence.due()
        cadence.saved(cost_s)
        assert not cadence.due()


def test_by_steps() -> None:
    cadence = Cadence(Checkpoint(every_steps=3))
    assert [step for step in range(1, 10) if cadence.after(step)] == [3, 6, 9]
    assert not any(Cadence(Checkpoint()).after(step) for step in range(1, 10))


def test_the_writer_gives_each_result_once_and_raises_each_error_once() -> None:
    writer, go = Writer(), threading.Event()
    saved = Saved(Path("p"), 1, [])

    def write() -> Saved:
        go.wait()
        return saved

    def fail() -> Saved:
        raise ResourceError("full")

    assert writer.take() is None
    writer.start(write)
    assert writer.take() is None
    go.set()
    assert writer.take(None) == saved
    assert writer.take(None) is None
    writer.start(fail)
    with pytest.raises(ResourceError, match="full"):
        writer.take(None)
    assert writer.take(None) is None


def test_copies_are_kept_in_the_same_layout() -> None:
    buffers = Buffers()
    tensor = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    first = buffers.copy({"a": {"x": tensor, "n": torch.tensor(3)}})["a"]
    assert torch.equal(first["x"], tensor)
    assert first["x"].stride() == tensor.stride()
    tensor.zero_()
    assert first["x"].any()
    second = buffers.copy({"a": {"x": tensor}})["a"]
    assert second.keys() == {"x"}
    assert second["x"].data_ptr() == first["x"].data_ptr()
    assert not second["x"].any()


def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_line(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread meets a full disk; the loop raises it, and the first checkpoint stays."""
    from hvdtrain.engine import checkpoint

    whole_file, saves = checkpoint.whole_file, []

    def full(path: Path) -> Any:
        if path.name == "meta.json":
            saves.append(threading.current_thread().name)
            if len(saves) > 1:
                raise OSError(28, "No space left on device")
        return whole_file(path)

    monkeypatch.setattr(checkpoint, "whole_file", full)
    with pytest.raises(ResourceError, match="checkpoint not written: No space left on device"):
        train(config(work, 4), Solo(), run_dir=work / "run")
    assert saves == ["hvdtrain-checkpoint"] * 2
    folder = work / "run/checkpoints"
    assert [path.name for path in folder.iterdir()] == ["e0001-s0000000000"]
    assert list_checkpoints(folder)


def test_a_damaged_newest_checkpoint_is_moved_aside(trained: Path) -> None:
    resume(trained, epochs=2)
    newest, older = list_checkpoints(trained / "run/checkpoints")
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    resume(trained, epochs=2)
    folder = trained / "run/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"damaged-{newest.name}",
        older.name,
        newest.name,
    ]
    assert f"resumed from {older}: epoch 1, image 0" in notes(trained)
    assert f"{newest} is now damaged-{newest.name}; delete it if you have no use for it" in notes(
        trained
    )


def test_a_newest_checkpoint_without_metadata_is_told_and_moved_aside(trained: Path) -> None:
    """Nothing says any more that it is the newest."""
    resume(trained, epochs=2)
    newest, older = list_checkpoints(trained / "run/checkpoints")
    (newest / "meta.json").write_text("{")
    resume(trained, epochs=2)
    folder = trained / "run/checkpoints"
    assert f"damaged-{newest.name}" in {path.name for path in folder.iterdir()}
    assert f"resumed from {older}: epoch 1, image 0" in notes(trained)
    assert any(note.startswith(f"warning: {newest}/meta.json") for note in notes(trained))


def test_damaged_checkpoints_stay_where_they_are_if_there_is_no_other(trained: Path) -> None:
    [only] = list_checkpoints(trained / "run/checkpoints")
    (only / "model.safetensors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no usable checkpoint to resume from"):
            resume(trained)
        with pytest.raises(CheckpointError, match="no usable checkpoint to resume from"):
            train(config(trained, 2), Solo(), resume="auto", run_dir=trained / "run")
    assert list_checkpoints(trained / "run/checkpoints") == [only]


def test_epochs_are_kept_beside_checkpoints_in_mid_epoch(work: Path) -> None:
    cfg = config(work, 3)
    every = cfg.checkpoint.model_copy(update={"every_steps": 1, "keep": 2})
    train(cfg.model_copy(update={"checkpoint": every}), Solo(), run_dir=work / "run")
    kept = [path.name for path in list_checkpoints(work / "run/checkpoints")]
    assert kept == ["e0003-s0000000000", "e0002-s0000000008", "e0002-s0000000000"]


@pytest.mark.usefixtures("page")
def test_a_new_run_takes_the_global_batch_that_its_config_has_on_other_ranks(work: Path) -> None:
    cfg = config(work, 1)
    again = cfg.train.model_copy(update={"accumulate": 2})
    wanted = train(cfg.model_copy(update={"train": again}), Solo(), run_dir=work / "wanted")
    found = train(cfg, Solo(), run_dir=work / "run", batch_ranks=2)
    assert (found["loss"], found["samples"]) == (wanted["loss"], wanted["samples"])
    batch = cfg.phases[0].batch_per_worker
    line = (
        f"begun on 1 rank instead of 2: 2 accumulation steps keep the global batch of {2 * batch}"
    )
    assert line in notes(work)
    # It is resumed as it began, whatever the number says now.
    last = resume(work, epochs=2)
    assert last["samples"] == 2 * found["samples"]
    with pytest.raises(ConfigError, match="cannot share"):
        train(cfg, Solo(), run_dir=work / "other", batch_ranks=3 * 2**20)


def test_the_best_is_kept_by_the_evaluation_before_it(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top1 = {1: 0.2, 2: 0.9, 3: 0.1, 4: 0.3}
    evaluate = validation.evaluate

    def scripted(state: Any, batches: Any, images: int) -> Any:
        found = evaluate(state, batches, images)
        return {**found, "top1": top1[state.progress.position.epoch]}

    monkeypatch.setattr(validation, "evaluate", scripted)
    cfg = config(work, 4)
    more = cfg.checkpoint.model_copy(update={"keep": 1, "keep_best": 1, "keep_every": 3})
    train(cfg.model_copy(update={"checkpoint": more}), Solo(), run_dir=work / "run")
    found = list_checkpoints(work / "run/checkpoints")
    kept = {path.name[:5]: read_meta(path)["top1"] for path in found}
    assert kept == {"e0004": 0.3, "e0003": 0.1, "e0002": 0.9}


def test_no_checkpoint_is_due_while_one_is_written(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    cadence = Cadence(Checkpoint(every_minutes=1), lambda: clock[0])
    state, paths, sinks = (cast("Any", None) for _ in range(3))
    snapshots = Snapshots(state, paths, sinks, cadence, {}, {}, Keep(2))
    clock[0] = 61
    assert snapshots.due()
    goes_on = threading.Event()
    snapshots.writer.start(lambda: cast("Any", goes_on.wait()))
    assert not snapshots.due()
    goes_on.set()
    snapshots.writer.take(None)
    assert snapshots.due()


def test_no_error_of_the_writer_hides_how_a_run_ends(work: Path) -> None:
    told: list[str] = []
    state, paths = (cast("Any", None) for _ in range(2))
    sinks = cast("Any", SimpleNamespace(write=lambda note: told.append(note.text)))
    snapshots = Snapshots(state, paths, sinks, Cadence(Checkpoint()), {}, {}, Keep(2))

    def write() -> Any:
        raise MemoryError("no room")

    snapshots.writer.start(write)
    snapshots.finish()
    assert told == ["warning: no room"]


def test_leftovers_are_swept_at_the_start(trained: Path) -> None:
    folder = trained / "run/checkpoints"
    for name in (".e0009-s0000000000.part", ".e0000-s0000000004.gone", "mine"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("x")
    resume(trained)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["e0001-s0000000000", "e0002-s0000000000", "mine"]


def test_a_checkpoint_in_mid_epoch_is_gone_on_from(work: Path) -> None:
    """12 images in batches of 4: the third checkpoint is that of the first epoch's end."""
    cfg = config(work, 2)
    every = cfg.checkpoint.model_copy(update={"every_steps": 2, "keep": 9})
    cfg = cfg.model_copy(update={"checkpoint": every})
    whole = train(cfg, Solo(), run_dir=work / "run")
    folder = work / "run/checkpoints"
    places = ["e0000-s0000000008", "e0001-s0000000000", "e0001-s0000000004", "e0002-s0000000000"]
    assert [path.name for path in reversed(list_checkpoints(folder))] == places
    assert [read_meta(folder / name)["step"] for name in places] == [2, 3, 4, 6]
    for name in (places[1], places[3]):
        (folder / name).rename(work / name)
    again = resume(work, epochs=2)
    assert (again["loss"], again["samples"]) == (whole["loss"], whole["samples"])
    lines = map(json.loads, (work / "run/events.jsonl").read_text().splitlines())
    written = [event["step"] for event in lines if event["kind"] == "checkpoint"]
    assert written == [2, 3, 4, 6, 6]


@pytest.mark.usefixtures("page")
def test_a_removed_run_directory_is_made_anew(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = work / "run"
    evaluate = loop.report_evaluation

    def removed(run: Any, epoch: Any, stops: Any) -> Any:
        if epoch.index == 0:
            run.snapshots.writer.take(None)
            shutil.rmtree(root)
        return evaluate(run, epoch, stops)

    monkeypatch.setattr(loop, "report_evaluation", removed)
    train(config(work, 3), Solo(), run_dir=root)
    warning = f"warning: {root} was removed, and is made anew: its reports and checkpoints so far are lost"
    assert warning in notes(work)
    assert [path.name for path in list_checkpoints(root / "checkpoints")] == [
        "e0003-s0000000000",
        "e0002-s0000000000",
    ]
    for name in ("config.yaml", "environment.json", "classes.txt", "summary.json", "report.html"):
        assert (root / name).is_file()
    monkeypatch.undo()
    assert resume(work, epochs=4)["epochs"] == 4
