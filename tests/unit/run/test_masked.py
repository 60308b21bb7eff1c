"""Images that an earlier attempt has masked are used again by a resumed run, once they are repaired."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.errors import DataError
from hvdtrain.files import move_aside
from hvdtrain.train import train
from tests.unit.run.data_runs import config, notes

BAD = ("ant/1.jpg", "cat/2.jpg")


@pytest.fixture
def damaged(work: Path) -> Path:
    """Two images cut short; the sound ones are in `sound`."""
    shutil.copytree(work / "train", work / "sound")
    for name in BAD:
        image = work / "train" / name
        image.write_bytes(image.read_bytes()[:-40])
    return work


def run(work: Path, epochs: int = 1, *, limit: float = 0.5, resume: bool = False) -> dict[str, Any]:
    cfg = config(work, epochs, f", on_bad: mask, max_bad_ratio: {limit}")
    if resume:
        return train(cfg, Solo(), resume=str(work / "run"))
    return train(cfg, Solo(), run_dir=work / "run")


def listed(work: Path) -> list[str]:
    lines = (work / "run/bad_samples.jsonl").read_text().splitlines()
    return ["/".join(Path(json.loads(line)["name"]).parts[-2:]) for line in lines]


def trained(work: Path, epoch: int) -> float:
    """Images used in an epoch, counted from 1."""
    events = map(json.loads, (work / "run/events.jsonl").read_text().splitlines())
    trains = [event for event in events if event["kind"] == "train"]
    return sum(event["samples"] for event in trains if epoch - 1 < event["epoch"] <= epoch)


def said(work: Path) -> list[str]:
    return [text for text in notes(work) if "masked before can be read" in text]


def test_a_repaired_image_comes_back_and_a_bad_one_does_not(damaged: Path) -> None:
    run(damaged)
    assert sorted(listed(damaged)) == sorted(BAD)
    shutil.copy(damaged / "sound" / BAD[0], damaged / "train" / BAD[0])
    (damaged / "train" / BAD[1]).write_bytes(b"this is text")
    run(damaged, 2, resume=True)
    assert listed(damaged) == [BAD[1]]
    assert (trained(damaged, 1), trained(damaged, 2)) == (10, 11)
    run(damaged, 3, resume=True)  # the new size is now that of the dataset
    assert trained(damaged, 3) == 11
    assert said(damaged) == [
        "1 of 2 images masked before can be read again and are used from here on: "
        f"{damaged}/train/{BAD[0]}",
        "0 of 1 images masked before can be read again",
    ]


def test_a_run_over_the_limit_goes_on_once_its_images_are_repaired(damaged: Path) -> None:
    with pytest.raises(
        DataError, match=r"max_bad_ratio: 2 bad .*; update \d is saved in \S+/e0000-s"
    ):
        run(damaged, limit=0.1)
    assert trained(damaged, 1) < 10
    shutil.copy(damaged / "sound" / BAD[0], damaged / "train" / BAD[0])
    summary = run(damaged, limit=0.1, resume=True)
    assert listed(damaged) == [BAD[1]]
    assert (
        trained(damaged, 1) == summary["samples"] >= 10
    )  # 11, if the repaired one was still to come


def test_a_damaged_list_is_told_and_kept(damaged: Path) -> None:
    run(damaged)
    path = damaged / "run/bad_samples.jsonl"
    cut = path.read_bytes()[:-30]
    path.write_bytes(cut)
    run(damaged, 2, resume=True)
    assert (
        f"warning: {path}: 1 of 2 lines are damaged; what is lost with them is masked again where it "
        "is met; it is kept as damaged-bad_samples.jsonl"
    ) in notes(damaged)
    assert (damaged / "run/damaged-bad_samples.jsonl").read_bytes() == cut
    assert sorted(listed(damaged)) == sorted(BAD)  # masked again where it was met


def test_whatever_is_in_the_place_of_the_list_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    for number in range(2):
        path.mkdir()
        (path / str(number)).touch()
        kept = move_aside(path)
        assert [file.name for file in kept.iterdir()] == [str(number)]
    assert not path.exists()
