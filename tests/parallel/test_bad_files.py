"""A training set of 1000 images with a file of every bad and unusual kind, on two real ranks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests import bad_files
from tests.bad_files import BAD, ON_DISK, SILENT, SOUND, Kind
from tests.launch import ENGINES, REPOSITORY, mpirun, run

WORKER = REPOSITORY / "tests/parallel/bad_files_worker.py"
COUNT = 1000
BAD_COUNT = len(BAD) + len(ON_DISK)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The folders `files`, with one file of every kind, and `plain`, with the rest of a thousand."""
    root = tmp_path / "images"
    bad_files.write({**SOUND, **SILENT, **BAD}, root / "files")
    bad_files.write_on_disk(root / "files")
    plain = bad_files.write({"0": Kind(bad_files.jpeg)}, root / "plain")["0"]
    for k in range(1, COUNT - len({**SOUND, **SILENT, **BAD}) - len(ON_DISK)):
        os.link(plain, root / "plain" / f"{k}.jpg")
    return root


def events(run_dir: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (run_dir / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize("engine", ENGINES)
def test_masked_files_are_counted_and_named(images: Path, tmp_path: Path, engine: str) -> None:
    done = run(ENGINES[engine](2, sys.executable, WORKER, images, tmp_path, "mask"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    trained = events(tmp_path / "mask", "train")
    for epoch in (0, 1):
        reports = [e for e in trained if epoch < e["epoch"] <= epoch + 1]
        assert sum(e["samples"] for e in reports) == COUNT - BAD_COUNT
        assert sum(e["bad_samples"] for e in reports) == BAD_COUNT
    listed = map(json.loads, (tmp_path / "mask/bad_samples.jsonl").read_text().splitlines())
    reasons = {Path(entry["name"]).stem: entry["reason"] for entry in listed}
    assert reasons == {name: kind.reason for name, kind in BAD.items()} | ON_DISK
    notes = " ".join(event["text"] for event in events(tmp_path / "mask", "note"))
    assert "bad images masked" in notes
    # Above the limit every rank stops with the same line, and the list is written.
    texts = [(tmp_path / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("3\ndata.max_bad_ratio: ")
    assert "more than 0.02 of 1,000" in texts[0]
    assert len((tmp_path / "limited/bad_samples.jsonl").read_text().splitlines()) > 0.02 * COUNT


def test_a_strict_run_ends_and_names_a_bad_file(images: Path, tmp_path: Path) -> None:
    config = tmp_path / "strict.yaml"
    config.write_text(
        f"data: {{train: {images}, decode_threads: 1}}\nmodel: {{name: resnet8_gn}}\n"
        "phases: [{epochs: 2, image_size: 16, batch_per_worker: 32}]\nmetrics: {enabled: false}\n"
    )
    command = [sys.executable, "-m", "hvdtrain", "train", config]
    done = run(mpirun(2, *command), cwd=tmp_path, timeout_s=60)
    assert done.returncode == 3, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if "hvdtrain: error: " in line]
    assert lines
    for line in lines:
        named = next(part for part in line.split(": ") if part.startswith(str(images)))
        assert Path(named).stem in {**BAD, **ON_DISK}
