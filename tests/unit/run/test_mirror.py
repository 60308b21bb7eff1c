"""`checkpoint.mirror`: a second copy that is verified, and gone on from when the first is lost."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from hvdtrain import train as loop
from hvdtrain.checkpoint_files import list_checkpoints, read_meta, verify
from hvdtrain.checkpoint_keep import Keep
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config
from hvdtrain.engine.checkpoint import contents, metadata, write_checkpoint
from hvdtrain.engine.progress import Progress
from hvdtrain.errors import CheckpointError, ResourceError
from hvdtrain.paths import RunPaths
from hvdtrain.plan.epochs import Position
from hvdtrain.run import mirror_places as places
from hvdtrain.run.lock import RunLock
from hvdtrain.run.mirror import Mirror
from hvdtrain.run.mirror_places import copy_checkpoint
from hvdtrain.train import train
from tests.step_samples import network, state_of
from tests.unit.run.data_runs import COLOURS, config, notes, write

ONE, TWO, THREE = (f"e000{epoch}-s0000000000" for epoch in (1, 2, 3))


def mirrored(work: Path, epochs: int, place: str = "second", **more: Any) -> Config:
    cfg = config(work, epochs)
    cfg = cfg.model_copy(update={"train": cfg.train.model_copy(update={"compute_threads": 1})})
    settings = {"mirror": str(work / place), **more}
    cfg = cfg.model_copy(update={"checkpoint": cfg.checkpoint.model_copy(update=settings)})
    return cfg.model_copy(update={"output": str(work / "runs"), "name": "r"})


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "checkpoints").iterdir())


def damage(root: Path) -> None:
    for path in list_checkpoints(root / "checkpoints"):
        (path / "model.safetensors").write_bytes(b"")


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_page", lambda _: None)  # matplotlib takes seconds


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, and its mirror."""
    root = tmp_path_factory.mktemp("made")
    write(root / "train", list(COLOURS))
    write(root / "val", list(COLOURS), 2, 10)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "write_page", lambda _: None)
        train(mirrored(root, 2, keep=1), Solo(), run_dir=root / "run")
    return root


@pytest.fixture
def second(made: Path, work: Path) -> Path:
    """The mirror of a run, in a copy of both."""
    for name in ("run", "second"):
        shutil.copytree(made / name, work / name)
    mirror = work / "second/run"
    number = (work / "run/mirror.id").read_text()
    owner = {"run": str(made / "run"), "id": number}
    assert json.loads((mirror / "mirror.json").read_bytes()) == owner
    (mirror / "mirror.json").write_text(json.dumps({**owner, "run": str(work / "run")}))
    return mirror


def test_the_mirror_is_the_same_and_complete(work: Path, second: Path) -> None:
    assert names(second) == names(work / "run") == [TWO]
    for file in (work / "run/checkpoints" / TWO).iterdir():
        assert (second / "checkpoints" / TWO / file.name).read_bytes() == file.read_bytes()
    for name in ("config.yaml", "environment.json", "classes.txt", "dataset.npz"):
        assert (second / name).read_bytes() == (work / "run" / name).read_bytes()
    assert not [note for note in notes(work) if "mirror" in note]


def test_a_run_goes_on_from_its_mirror(work: Path, second: Path) -> None:
    shutil.copytree(work / "run", work / "other")
    whole = train(mirrored(work, 3), Solo(), resume=str(work / "other"))
    again = train(mirrored(work, 3), Solo(), resume=str(second))
    assert (again["loss"], again["samples"]) == (whole["loss"], whole["samples"])
    lines = map(json.loads, (second / "events.jsonl").read_text().splitlines())
    told = [event["text"] for event in lines if event["kind"] == "note"]
    itself = (
        f"warning: checkpoint.mirror: {second}: the run itself is there: there is no second copy"
    )
    assert f"{itself}; training goes on" in told
    # From now on it is a run of its own, which the first one does not write to.
    before = names(second)
    train(mirrored(work, 4), Solo(), resume=str(work / "run"))
    assert names(second) == before
    assert any(f"{second}: is no mirror: nothing is copied there" in note for note in notes(work))


@pytest.mark.parametrize(
    ("lost", "by"),
    [("damaged", "name"), ("checkpoints", "run_dir"), ("all", "name"), ("all", "run_dir")],
)
def test_what_is_lost_comes_back_from_the_mirror(
    work: Path, second: Path, lost: str, by: str
) -> None:
    run = work / "run"
    if lost == "damaged":
        damage(run)
    else:
        shutil.rmtree(run if lost == "all" else run / "checkpoints")
    cfg = mirrored(work, 3)
    if by == "name":
        end = train(cfg, Solo(), resume=str(run))
    else:
        end = train(cfg, Solo(), resume="auto", run_dir=run)
    assert end["steps"] == 9
    told = [note for note in notes(work) if "was copied back from the mirror" in note]
    text = f"no checkpoint in {run}/checkpoints is intact: {TWO} was copied back from the mirror"
    assert told == [f"warning: {text} {second}"]
    assert f"resumed from {run}/checkpoints/{TWO}: epoch 2, image 0" in notes(work)
    aside = [f"damaged-{TWO}"] if lost == "damaged" else []
    assert names(run) == [*aside, TWO, THREE]
    assert names(second) == [TWO, THREE]


def test_auto_looks_in_the_mirror_too(work: Path) -> None:
    root = Path(train(mirrored(work, 1), Solo())["run_dir"])
    for lost in (root / "checkpoints", root / "summary.json"):
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    again = train(mirrored(work, 2), Solo(), resume="auto")
    assert (Path(again["run_dir"]), again["steps"]) == (root, 6)


def test_an_intact_checkpoint_is_preferred_to_the_mirror(work: Path, second: Path) -> None:
    folder = work / "run/checkpoints"
    shutil.copytree(folder / TWO, folder / THREE)
    (folder / THREE / "model.safetensors").write_bytes(b"")
    train(mirrored(work, 3), Solo(), resume=str(work / "run"))
    assert not [note for note in notes(work) if "copied back" in note]
    assert f"resumed from {folder / TWO}: epoch 2, image 0" in notes(work)


def test_a_damaged_mirror_is_passed_over(work: Path, second: Path) -> None:
    damage(work / "run")
    damage(second)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        train(mirrored(work, 3), Solo(), resume=str(work / "run"))


def test_the_mirror_keeps_what_the_run_keeps(tmp_path: Path) -> None:
    """Of checkpoints that come while the mirror is being written as well."""
    run, second, keep = tmp_path / "run", tmp_path / "second/run", Keep(1, every=2)
    mirror = Mirror(RunPaths(run), str(tmp_path / "second"), keep)
    state = state_of(network())
    for epoch in range(1, 6):
        state.progress = Progress(Position(epoch, 0))
        write_checkpoint(contents(state), metadata(state, {}), run / "checkpoints", keep)
        mirror.start()
        if epoch == 2:
            mirror.finish()
            (second / "checkpoints/mine").mkdir()
            (second / "checkpoints/.e0009-s0000000000.part").mkdir()
            mirror = Mirror(RunPaths(run), str(tmp_path / "second"), keep)
    mirror.finish()
    assert mirror.notes() == []
    kept = ["e0002-s0000000000", "e0004-s0000000000", "e0005-s0000000000"]
    assert names(run) == kept
    assert names(second) == [*kept, "mine"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda place: place.write_text(""), "{place}/run: Not a directory"),
        (
            lambda place: (place / "run/mine").mkdir(parents=True),
            "{place}/run: is no mirror: nothing is",
        ),
        (
            lambda place: [
                (place / "run").mkdir(parents=True),
                (place / "run/mirror.json").write_text('{"run": "/elsewhere/run"}'),
            ],
            "{place}/run: is the mirror of /elsewhere/run: nothing is copied there",
        ),
        (lambda place: [(place / "run").mkdir(parents=True), RunLock(place / "run")], "in use by"),
    ],
)
def test_a_mirror_that_fails_is_one_line(work: Path, second: Path, make: Any, text: str) -> None:
    shutil.rmtree(second.parent)
    held = make(second.parent)
    mirror = Mirror(RunPaths(work / "run"), str(second.parent), Keep(1))
    told = []
    for _ in range(3):
        mirror.start()
        mirror.finish()
        told += mirror.notes()
    assert len(told) == 1
    assert text.format(place=second.parent) in told[0]
    assert told[0].endswith("; training goes on")
    del held


def test_a_mirror_whose_job_was_killed_at_its_start(work: Path, second: Path) -> None:
    shutil.rmtree(second)
    second.mkdir()
    for name in (".lock", ".mirror.json.part"):
        (second / name).touch()
    mirror = Mirror(RunPaths(work / "run"), str(second.parent), Keep(1))
    mirror.start()
    mirror.finish()
    assert mirror.notes() == []
    assert names(second) == [TWO]


def test_a_run_whose_mirror_fails_ends_as_any_other(work: Path) -> None:
    (work / "second").write_text("")
    assert train(mirrored(work, 3), Solo(), run_dir=work / "run")["epochs"] == 3
    told = [note for note in notes(work) if "checkpoint.mirror" in note]
    assert told == [
        f"warning: checkpoint.mirror: {work}/second/run: Not a directory; training goes on"
    ]


def test_the_loop_never_waits_for_the_mirror(
    work: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not answer: training goes on, and the end says what is missing."""
    answers = threading.Event()
    monkeypatch.setattr(places, "copy_checkpoint", lambda *_: answers.wait())
    shutil.rmtree(second)
    mirror = Mirror(RunPaths(work / "run"), str(work / "second"), Keep(1))
    for _ in range(3):
        mirror.start()
    mirror.finish(0.1)
    assert mirror.notes() == [
        f"checkpoint.mirror: {second}: not complete after 0 s; training goes on"
    ]
    answers.set()
    mirror.finish()
    assert mirror.notes() == []


def test_a_copy_is_verified_before_it_has_its_name(
    work: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = work / "run/checkpoints" / TWO, second / "checkpoints"
    shutil.rmtree(target / TWO)

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"other")

    with monkeypatch.context() as patched:
        patched.setattr(places, "_forget", spoil)
        with pytest.raises(
            CheckpointError, match=r"the copy of e0002.* is damaged when it is read"
        ):
            copy_checkpoint(source, target)
    assert names(second) == []
    (source / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"^.*/run/checkpoints/e0002.*optimizer.*: not copied$"
    ):
        copy_checkpoint(source, target)
    assert names(second) == []


def test_a_checkpoint_that_is_deleted_meanwhile_is_copied_whole(
    work: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = work / "run/checkpoints" / TWO, second / "checkpoints"
    shutil.rmtree(target / TWO)
    opened = places.opened

    def then_deleted(path: Path, stack: Any) -> Any:
        files = opened(path, stack)
        shutil.rmtree(path)
        return files

    monkeypatch.setattr(places, "opened", then_deleted)
    copy_checkpoint(source, target)
    assert verify(target / TWO)["step"] == read_meta(target / TWO)["step"] == 6


def test_another_job_in_the_directory_is_not_disturbed(work: Path, second: Path) -> None:
    shutil.rmtree(work / "run/checkpoints")
    lock = RunLock(work / "run")
    with pytest.raises(ResourceError, match="in use by another job"):
        train(mirrored(work, 3), Solo(), resume=str(work / "run"))
    assert not list_checkpoints(work / "run/checkpoints")
    lock.release()
