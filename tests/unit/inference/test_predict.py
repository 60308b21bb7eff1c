"""Predictions: the pixels and figures of an evaluation, and files that are no images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hvdtrain.cli.main import app
from hvdtrain.comm.ranks import Solo
from hvdtrain.errors import CheckpointError, ConfigError, DataError
from hvdtrain.inference.classifier import load
from hvdtrain.inference.given_images import find_images
from hvdtrain.run.evaluation import evaluate_run
from tests import bad_files


def test_predictions_are_those_of_an_evaluation(images: Path, run: Path) -> None:
    evaluated = evaluate_run(run, [], Solo())
    classifier = load(run, "cpu")
    paths = sorted((images / "val").rglob("*.png"))
    found = classifier.predict(paths, top=2, batch=3)
    right = [
        one.probabilities[one.classes.index(p.parent.name)]
        for one, p in zip(found, paths, strict=True)
    ]
    assert np.mean([-np.log(share) for share in right]) == pytest.approx(
        evaluated["loss"], abs=1e-6
    )
    hits = [one.classes[0] == path.parent.name for one, path in zip(found, paths, strict=True)]
    assert np.mean(hits) == pytest.approx(evaluated["top1"])
    assert [one.name for one in found] == list(map(str, paths))
    assert all(sum(one.probabilities) == pytest.approx(1, abs=1e-6) for one in found)


def test_what_is_not_finite_is_a_row_with_its_reason(images: Path, run: Path) -> None:
    classifier = load(run, "cpu")

    def overflow(_module: object, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
        logits[1, 0] = torch.inf
        return logits

    classifier.network.register_forward_hook(overflow)
    good, bad = classifier.predict(sorted((images / "val/cat").iterdir())[:2])
    assert good.fault is None
    assert bad.fault is not None
    assert (bad.fault.reason, bad.classes, bad.probabilities) == ("network", [], [])


def test_paths_pixels_and_pictures_give_the_same(images: Path, run: Path) -> None:
    classifier = load(run, "cpu")
    path = images / "val/cat/2.png"
    picture = Image.open(path)
    turned = picture.copy().transpose(Image.Transpose.ROTATE_270)
    turned.getexif()[0x0112] = 8  # which means: turn it back
    kinds = [path, str(path), picture, np.asarray(picture), turned]
    found = classifier.predict(kinds)
    assert len({tuple(one.probabilities) for one in found}) == 1
    assert classifier.predict(picture)[0].probabilities == found[0].probabilities
    several = np.stack([np.asarray(picture)] * 3)
    assert [one.name for one in classifier.predict(several)] == ["0", "1", "2"]
    with pytest.raises(
        DataError, match=r"image 0: expected an array \[H, W, 3\] uint8, found .* float"
    ):
        classifier.predict(np.zeros((4, 4, 3), dtype=np.float32))
    with pytest.raises(DataError, match="image 1: expected a path"):
        classifier.predict([picture, 7])  # type: ignore[list-item]


def test_odd_files_are_rows_with_their_reason(run: Path, tmp_path: Path) -> None:
    kinds = {**bad_files.SOUND, **bad_files.SILENT, **bad_files.BAD}
    paths = bad_files.write(kinds, tmp_path / "odd")
    assert len(paths) >= 60
    named = sorted([*paths.values(), tmp_path / "odd/missing.jpg", Path("/dev/zero")])
    page, rows = tmp_path / "page.html", tmp_path / "rows.jsonl"
    words = ["predict", str(run), *map(str, named), "--format", "json", "-o", str(rows)]
    ended = CliRunner().invoke(
        app, [*words, "--html", str(page), "--batch", "16", "--device", "cpu"]
    )
    assert isinstance(ended.exception, DataError), ended.output
    assert ended.exception.exit_code == 3
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [one["image"] for one in found] == [str(path) for path in named]
    reasons = {Path(one["image"]).stem: one["fault"] and one["fault"]["reason"] for one in found}
    expected = {name: kind.reason or None for name, kind in kinds.items()}
    assert reasons == expected | {"missing": "read", "zero": "read"}
    text = page.read_text()
    assert text.count("<figure>") == sum(not kind.reason for kind in kinds.values())
    assert "not a regular file" in text
    assert "http:" not in text
    assert "https:" not in text


def test_folders_and_lists(images: Path, run: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text(f"id,image_path\n1,{images}/val/dog/0.png\n2,nowhere.png\n")
    plain = tmp_path / "list.txt"
    plain.write_text(f"{images}/val/dog/1.png\n\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/notes.md").write_text("none")
    notes: list[str] = []
    found = find_images([images / "val", listed, plain], notes)
    assert [one.name for one in found] == [
        *map(str, sorted((images / "val").rglob("*.png"))),
        f"{images}/val/dog/0.png",
        f"{tmp_path}/nowhere.png",
        f"{images}/val/dog/1.png",
    ]
    with pytest.raises(DataError, match="more: no images in it"):
        find_images([tmp_path / "more"], notes)
    assert notes == [f"{tmp_path}/more: left out: .md 1 (first: notes.md)"]
    ended = CliRunner().invoke(
        app, ["predict", str(run), str(plain), "--format", "csv", "--top", "9"]
    )
    assert ended.exit_code == 0, ended.output
    assert "image,fault,class_1,probability_1,class_2,probability_2" in ended.output


def test_no_model(run: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run, checkpoint or file"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="found another file"):
        load(images / "val/cat/0.png")
    with pytest.raises(ConfigError, match="device: cuda:99: cannot be used"):
        load(run, "cuda:99")
    with pytest.raises(ConfigError, match="device: nonsense: cannot be used"):
        load(run, "nonsense")


def test_logits_of_prepared_images(run: Path) -> None:
    classifier = load(run)
    assert classifier.logits(torch.zeros(3, 3, 16, 16)).shape == (3, 2)
