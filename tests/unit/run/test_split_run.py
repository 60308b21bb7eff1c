"""A run whose validation images are held out of data.train keeps to the same ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hvdtrain.checkpoint_files import list_checkpoints, read_meta
from hvdtrain.comm.ranks import Solo
from hvdtrain.errors import ConfigError, DataError
from hvdtrain.run.evaluation import evaluate_run
from hvdtrain.train import train
from tests.unit.run.data_runs import notes, split_config, write


@pytest.fixture
def held(work: Path) -> Path:
    """A run of 9 training and 3 held-out images; there are no other validation images."""
    shutil.rmtree(work / "val")
    train(split_config(work), Solo(), run_dir=work / "run")
    return work


def test_the_parts_are_recorded(held: Path) -> None:
    data = read_meta(list_checkpoints(held / "run/checkpoints")[0])["data"]
    assert {kind: data[kind]["images"] for kind in ("train", "val")} == {"train": 9, "val": 3}
    assert data["train"]["fingerprint"] != data["val"]["fingerprint"]
    assert data["train"]["path"] == data["val"]["path"] == str(held / "train")


def test_evaluation_takes_the_held_out_images(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = json.loads((held / "run/summary.json").read_text())
    monkeypatch.chdir("/")
    result = evaluate_run(held / "run", [], Solo())
    assert (result["top1"], result["images"]) == (summary["top1"], 3)
    assert result["loss"] == pytest.approx(summary["loss"])
    (held / "train").rename(held / "moved")
    moved = evaluate_run(held / "run", [f"data.train={held}/moved"], Solo())
    assert moved["loss"] == pytest.approx(summary["loss"])


@pytest.mark.parametrize("setting", ["seed=1", "data.val=0.5"])
def test_evaluation_refuses_images_of_the_training(held: Path, setting: str) -> None:
    with pytest.raises(DataError, match="are not the images that this run held out"):
        evaluate_run(held / "run", [setting], Solo())


def test_evaluation_of_a_run_with_other_validation_images_takes_no_share(trained: Path) -> None:
    with pytest.raises(DataError, match="are not the images that this run held out"):
        evaluate_run(trained / "run", ["data.val=0.34"], Solo())


def test_a_resumed_run_keeps_the_split(held: Path) -> None:
    train(split_config(held, 2), Solo(), resume=str(held / "run"))
    assert any(note.startswith("resumed from") for note in notes(held))


def test_a_resumed_run_refuses_another_split(held: Path) -> None:
    with pytest.raises(DataError, match="not the images that this run began with"):
        train(split_config(held, 2, "data.val=0.6"), Solo(), resume=str(held / "run"))
    with pytest.raises(ConfigError, match="seed 0 → 1"):
        train(split_config(held, 2, "seed=1"), Solo(), resume=str(held / "run"))


def test_a_resumed_run_names_what_was_added(held: Path) -> None:
    write(held / "train", ["ant"], 1, begin=9)
    with pytest.raises(DataError, match=r"data\.train: .*1 added \(ant/9\.jpg\)"):
        train(split_config(held, 2), Solo(), resume=str(held / "run"))
