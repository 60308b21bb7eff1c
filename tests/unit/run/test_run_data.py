"""A run keeps the names of its classes and the list of its images, and is held to them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hvdtrain.checkpoint_files import list_checkpoints, read_meta, verify
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.errors import ConfigError, DataError
from hvdtrain.models.weights import load_weights, read_tensors
from hvdtrain.report.run import read_run
from hvdtrain.run.evaluation import evaluate_run
from hvdtrain.train import train
from tests.unit.run.data_runs import COLOURS, config, edit_meta, notes, resume, write


@pytest.mark.usefixtures("page")
def test_the_names_are_kept_wherever_a_result_is(trained: Path) -> None:
    names = list(COLOURS)
    meta = verify(list_checkpoints(trained / "run/checkpoints")[0])
    assert meta["data"]["classes"] == names
    assert {kind: meta["data"][kind]["images"] for kind in ("train", "val")} == {
        "train": 12,
        "val": 6,
    }
    assert (trained / "run/classes.txt").read_text() == "ant\nbee\ncat\n"
    summary = json.loads((trained / "run/summary.json").read_text())
    assert summary["classes"] == names
    assert summary["accepted_changes"] == []
    assert read_run(trained / "run").classes == names
    assert "3: ant, bee, cat" in (trained / "run/report.html").read_text()
    assert "classes: 3 (ant, bee, cat), 4 images each" in notes(trained)


@pytest.mark.usefixtures("page")
def test_names_that_are_odd_are_kept(work: Path) -> None:
    odd = ["a\nb", os.fsdecode(b"\xff"), "<b>"]
    for name, other in zip(COLOURS, odd, strict=True):
        for part in ("train", "val"):
            (work / part / name).rename(work / part / other)
    train(config(work), Solo(), run_dir=work / "run")
    assert set(read_meta(list_checkpoints(work / "run/checkpoints")[0])["data"]["classes"]) == set(
        odd
    )
    assert (work / "run/classes.txt").read_bytes().splitlines() == [
        b"<b>",
        b"'a\\nb'",
        b"\xff",
    ]
    assert "&lt;b&gt;" in (work / "run/report.html").read_text()


def test_evaluation_needs_neither_training_images_nor_a_place(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = json.loads((trained / "run/summary.json").read_text())
    shutil.rmtree(trained / "train")
    checkpoint = list_checkpoints(trained / "run/checkpoints")[0]
    (trained / "link").symlink_to(checkpoint)
    for folder, path in (
        (trained, "run"),
        (trained, f"run/checkpoints/{checkpoint.name}"),
        (trained, "link"),
        (checkpoint, "."),
        (checkpoint.parent, checkpoint.name),
        (checkpoint / "..", f"./{checkpoint.name}/"),
    ):
        monkeypatch.chdir(folder)
        result = evaluate_run(Path(path), [], Solo())
        assert (result["top1"], result["images"]) == (known["top1"], 6)
        assert result["loss"] == pytest.approx(known["loss"])
    monkeypatch.chdir(trained)
    shutil.copytree(checkpoint, trained / "alone/by/itself")
    settings = ["data.train=nowhere", f"data.val={trained}/val", "phases.0.batch_per_worker=500"]
    result = evaluate_run(trained / "alone/by/itself", settings, Solo())
    assert result["top1"] == known["top1"]


def test_evaluation_finds_the_images_where_the_run_did(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    train(config(Path()), Solo(), run_dir=work / "run")
    monkeypatch.chdir("/")
    assert evaluate_run(work / "run", [], Solo())["images"] == 6
    (work / "val").rename(work / "elsewhere")
    with pytest.raises(DataError, match=f"data\\.val: {work}/val: no such folder"):
        evaluate_run(work / "run", [], Solo())
    assert evaluate_run(work / "run", [f"data.val={work}/elsewhere"], Solo())["images"] == 6
    with pytest.raises(DataError, match=r"data\.val: no validation images: name them"):
        evaluate_run(work / "run", ["data.val=null"], Solo())


def test_classes_are_matched_by_name_at_evaluation(trained: Path) -> None:
    known = evaluate_run(trained / "run", [], Solo())
    table = trained / "list.csv"
    rows = [f"val/{name}/{k}.jpg,{name}" for name in reversed(COLOURS) for k in (10, 11)]
    table.write_text("\n".join(rows))
    listed = evaluate_run(trained / "run", [f"data.val={table}"], Solo())
    assert (listed["top1"], listed["warnings"]) == (known["top1"], [])
    table.write_text("\n".join(rows[:2]))
    part = evaluate_run(trained / "run", [f"data.val={table}"], Solo())
    assert part["warnings"] == [f"data.val: {table}: has no images of 2 of 3 classes: ant, bee"]
    (trained / "val/ant").rename(trained / "val/worker_ant")
    with pytest.raises(DataError) as error:
        evaluate_run(trained / "run", [], Solo())
    assert str(error.value) == (
        f"data.val: {trained}/val: classes differ from those the checkpoint was trained with: "
        "missing ant; extra worker_ant"
    )


def test_a_checkpoint_of_an_old_version_is_evaluated_by_position(trained: Path) -> None:
    known = evaluate_run(trained / "run", [], Solo())
    edit_meta(trained, data=None, config=None)
    result = evaluate_run(trained / "run", [], Solo())
    assert result["top1"] == known["top1"]
    assert "without the names of its classes" in result["warnings"][0]


def test_a_run_of_an_old_version_goes_on_in_its_order(tmp_path: Path) -> None:
    """Its classes were sorted as text; with eleven numbers that is another order."""
    for part in ("train", "val"):
        for k in range(11):
            (tmp_path / part / str(k)).mkdir(parents=True)
            Image.new("RGB", (16, 16), (20 * k, 0, 0)).save(tmp_path / part / str(k) / "0.jpg")
    train(config(tmp_path), Solo(), run_dir=tmp_path / "run")
    newest = list_checkpoints(tmp_path / "run/checkpoints")[0]
    assert read_meta(newest)["data"]["classes"] == [str(k) for k in range(11)]
    (tmp_path / "run/dataset.npz").unlink()
    edit_meta(tmp_path, data=None, config=None)
    resume(tmp_path)
    order = sorted(str(k) for k in range(11))
    newest = list_checkpoints(tmp_path / "run/checkpoints")[0]
    assert read_meta(newest)["data"]["classes"] == order
    assert (tmp_path / "run/classes.txt").read_text().split() == order
    resume(tmp_path, epochs=3)
    newest = list_checkpoints(tmp_path / "run/checkpoints")[0]
    assert read_meta(newest)["data"]["classes"] == order


def exchanged(work: Path) -> None:
    (work / "train/ant/0.jpg").unlink()
    write(work / "train", ["bee"], 1, 50)


def swollen(work: Path) -> None:
    with (work / "train/cat/1.jpg").open("ab") as file:
        file.write(b"more")


def fewer(work: Path) -> None:
    for k in range(3):
        (work / f"train/ant/{k}.jpg").unlink()


def elsewhere(work: Path) -> None:
    (work / "val/ant/10.jpg").unlink()


CHANGES = {
    exchanged: "data.train: {}/train: 1 added (bee/50.jpg), 1 gone (ant/0.jpg)",
    swollen: "data.train: {}/train: 1 changed (cat/1.jpg)",
    fewer: "data.train: {}/train: 3 gone (ant/0.jpg, ant/1.jpg, …)",
    elsewhere: "data.val: {}/val: 1 gone (ant/10.jpg)",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_other_images_need_a_word(trained: Path, change: Any) -> None:
    text = CHANGES[change].format(trained)
    change(trained)
    with pytest.raises(DataError) as error:
        resume(trained)
    assert str(error.value) == (
        f"not the images that this run began with: {text}: put them back, or go on with these by "
        "--accept-changes"
    )
    summary = resume(trained, accept=True)
    assert summary["accepted_changes"] == [text]
    assert f"warning: other images than before, by --accept-changes: {text}" in notes(trained)
    newest = list_checkpoints(trained / "run/checkpoints")[0]
    assert read_meta(newest)["data"]["accepted"] == [text]
    # From now on these are the run's images.
    assert resume(trained, epochs=3)["accepted_changes"] == [text]


def test_without_the_list_the_fingerprint_is_left(trained: Path) -> None:
    (trained / "run/dataset.npz").write_bytes(b"damaged")
    assert resume(trained)["accepted_changes"] == []
    (trained / "run/dataset.npz").unlink()
    exchanged(trained)
    with pytest.raises(DataError, match=r"what differs is not known without dataset\.npz"):
        resume(trained, epochs=3)


def test_a_dataset_may_move_and_a_run_with_it(trained: Path) -> None:
    moved = trained / "moved"
    moved.mkdir()
    for name in ("train", "val", "run"):
        (trained / name).rename(moved / name)
    for file in (moved / "train").rglob("*.jpg"):
        os.utime(file, (1e9, 1e9))  # a copy may have other dates
    assert resume(moved)["accepted_changes"] == []


def test_a_run_that_lacks_a_class_now_is_not_resumed(trained: Path) -> None:
    for part in ("train", "val"):
        shutil.rmtree(trained / part / "cat")
    for accept in (False, True):
        with pytest.raises(DataError, match="was trained with: missing cat"):
            resume(trained, accept=accept)


def test_the_training_images_must_be_set(work: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train: not set"):
        train(parse_config("phases: [{epochs: 1, image_size: 16, batch_per_worker: 4}]"), Solo())


def test_a_list_that_cannot_be_written_is_told(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hvdtrain.run.dataset.whole_file", refuse)
    train(config(work), Solo(), run_dir=work / "run")
    assert notes(work)[-1] == (
        f"warning: {work}/run/dataset.npz: cannot be written: No space left on device"
    )


@pytest.mark.parametrize("named", ["file", "checkpoint", "run"])
def test_weights_are_matched_by_name(trained: Path, named: str) -> None:
    checkpoint = list_checkpoints(trained / "run/checkpoints")[0]
    edit_meta(
        trained,
        data={**read_meta(checkpoint)["data"], "classes": ["cat", "ant", "bee"]},
    )
    weights = {"file": checkpoint / "model.safetensors", "run": trained / "run"}.get(
        named, checkpoint
    )
    plain = config(trained)
    model = plain.model.model_copy(update={"weights": str(weights)})
    train(plain.model_copy(update={"model": model}), Solo(), run_dir=trained / "second")
    lines = map(json.loads, (trained / "second/events.jsonl").read_text().splitlines())
    texts = [event["text"] for event in lines if event["kind"] == "note"]
    assert any("the same classes in another order" in text for text in texts)


@pytest.mark.parametrize(
    ("rows", "note"),
    [(None, ""), ([0, 1, 2], ""), ([2, 0, 1], "another order"), ([], "other names")],
)
def test_the_classifier_of_a_file(trained: Path, rows: list[int] | None, note: str) -> None:
    from hvdtrain.models import build_model
    from hvdtrain.models.options import classifier_of

    weights = list_checkpoints(trained / "run/checkpoints")[0] / "model.safetensors"
    model = build_model(config(trained).model, 3)
    head = classifier_of(model)
    assert head is not None
    name = next(name for name, module in model.named_modules() if module is head)
    began, stored = head.weight.detach().clone(), read_tensors(weights)[f"{name}.weight"]
    texts = load_weights(model, weights, rows)
    expected = began if rows == [] else stored[rows] if rows else stored
    assert head.weight.equal(expected)
    assert [text for text in texts[1:] if note and note in text] == texts[1:]
    assert len(texts) == (2 if note else 1)
