"""Scanning: what is counted, what is bad, and how training uses the manifest."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hvdtrain import files
from hvdtrain.errors import DataError, ResourceError
from pipelines.commands.scan import scan
from pipelines.sources import open_source
from tests.unit.pipelines.samples import CLASSES, COUNT, PER_CLASS, Epoch, photograph


@pytest.fixture
def spoilt(folder, tmp_path):
    """A copy of `folder` with bad files, duplicates and other modes."""
    root = shutil.copytree(folder, tmp_path / "images")
    (root / "ant/empty.jpg").write_bytes(b"")
    (root / "bee/text.jpg").write_text("no image")
    content = (root / "bee/0.JPEG").read_bytes()
    (root / "bee/cut.jpg").write_bytes(content[: len(content) // 2])
    table = bytearray(content)
    table[table.index(b"\xff\xc4") + 4] = 0xFF
    (root / "cat/table.jpg").write_bytes(table)
    shutil.copy(root / "ant/1.JPEG", root / "ant/again.jpg")
    shutil.copy(root / "ant/2.JPEG", root / "cat/other.jpg")
    photograph(0, 30, 900).convert("L").save(root / "cat/grey.png")
    return root


def test_the_report(spoilt):
    seen: list[tuple[int, int]] = []
    report = scan(str(spoilt), None, 2, lambda *counts: seen.append(counts))
    count = len(CLASSES) * PER_CLASS + 7
    assert report.images == count
    assert seen[-1] == (count, count)
    assert report.class_counts == {
        "ant": PER_CLASS + 2,
        "bee": PER_CLASS + 2,
        "cat": PER_CLASS + 3,
    }
    assert report.modes == {"JPEG RGB": len(CLASSES) * PER_CLASS + 2, "PNG L": 1}
    assert report.short_side.min == 30
    reasons = {os.path.relpath(bad.name, spoilt): bad.reason for bad in report.bad}
    assert set(reasons) == {"ant/empty.jpg", "bee/text.jpg", "bee/cut.jpg", "cat/table.jpg"}
    assert reasons["ant/empty.jpg"] == "an empty file"
    assert reasons["bee/text.jpg"] == "not an image"
    assert all(reasons.values())
    groups = [[os.path.relpath(name, spoilt) for name in d.names] for d in report.duplicates]
    assert groups == [["ant/1.JPEG", "ant/again.jpg"], ["ant/2.JPEG", "cat/other.jpg"]]
    assert report.conflicts == 1
    files = sum(f.stat().st_size for f in spoilt.rglob("*.*") if not f.name.startswith("."))
    assert report.size_bytes == files


def test_training_checks_every_image_against_the_manifest(folder, tmp_path, make_loaders):
    root = shutil.copytree(folder, tmp_path / "images")
    assert scan(str(root), None, 1).bad == []
    source = open_source(str(root), "data.train")
    before = [source.read(i).tobytes() for i in range(len(source))]
    content = bytearray(before[9])
    content[-40] ^= 1  # decodes all the same
    damaged = root / "bee/2.JPEG"
    damaged.write_bytes(content)
    for i in range(len(source)):
        if i != 9:
            assert source.read(i).tobytes() == before[i]
    with pytest.raises(DataError, match=f"{damaged}: damaged or changed: its checksum differs"):
        list(make_loaders(root).train(Epoch()))


def test_samples_that_were_found_bad_stay_bad(spoilt):
    bad = scan(str(spoilt), None, 1).bad
    source = open_source(str(spoilt), "data.train")
    failed = []
    for i in range(len(source)):
        try:
            source.read(i)
        except DataError as error:
            failed.append(str(error))
    assert failed == [f"{b.name}: {b.reason} (found by data scan)" for b in bad]


def test_a_manifest_of_other_images_is_refused(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "images")
    scan(str(root), None, 1)
    shutil.copy(root / "ant/0.JPEG", root / "ant/new.jpg")
    with pytest.raises(
        DataError,
        match=r"other images than when it was scanned: 1 added \(ant/new\.jpg\); scan again",
    ):
        open_source(str(root), "data.train")
    scan(str(root), None, 1)
    assert len(open_source(str(root), "data.train")) == len(CLASSES) * PER_CLASS + 1
    (root / ".hvdtrain-scan.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"damaged .*; scan again or delete it"):
        open_source(str(root), "data.train")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("crc32", lambda a: a[:-1]),
        ("crc32", lambda a: a.astype(float)),
        ("bad", lambda a: np.array([0])),
        ("reasons", lambda a: np.arange(3)),
        ("fingerprint", lambda a: None),
    ],
)
def test_a_manifest_whose_parts_do_not_fit_is_refused(folder, tmp_path, name, spoil):
    root = shutil.copytree(folder, tmp_path / "images")
    scan(str(root), None, 1)
    with np.load(root / ".hvdtrain-scan.npz") as arrays:
        columns = {key: arrays[key] for key in arrays}
    columns[name] = spoil(columns[name])
    np.savez(root / ".hvdtrain-scan.npz", **{k: a for k, a in columns.items() if a is not None})
    with pytest.raises(
        DataError, match=r"\.hvdtrain-scan\.npz: damaged.*; scan again or delete it"
    ):
        open_source(str(root), "data.train")


def test_an_npz_whose_part_is_no_array_is_refused(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "images")
    scan(str(root), None, 1)
    with zipfile.ZipFile(root / ".hvdtrain-scan.npz", "a") as archive:
        archive.writestr("crc32", b"no array")
    with pytest.raises(DataError, match="damaged"):
        open_source(str(root), "data.train")


def test_a_manifest_elsewhere_leaves_the_folder_alone(folder, tmp_path):
    before = sorted(folder.rglob("*"))
    report = scan(str(folder), tmp_path / "m.npz", 1)
    assert report.manifest == str(tmp_path / "m.npz")
    assert (tmp_path / "m.npz").is_file()
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(ResourceError, match=r"--output: .*: cannot be written: No such file"):
        scan(str(folder), tmp_path / "none/m.npz", 1)


def test_a_folder_without_labels(folder):
    report = scan(str(folder / "ant"), None, 1)
    assert (report.images, report.class_counts, report.manifest) == (PER_CLASS, {}, None)
    assert not (folder / "ant/.hvdtrain-scan.npz").exists()


def test_what_is_left_out_is_in_the_report(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "images")
    shutil.copy(root / "ant/0.JPEG", root / "ant/0.jfif")
    shutil.copy(root / "ant/0.JPEG", root / "ant/noending")
    (root / "ant/x.gif").write_bytes(b"GIF89a")
    report = scan(str(root), None, 1)
    assert report.images == COUNT + 2
    assert report.left_out.counts == {".gif": 1}
    assert open_source(str(root), "data.train").left_out.counts == {".gif": 1}


class Refusing:
    """A disk on which some folders are read-only."""

    def __init__(self, *folders):
        self.folders = folders

    def __call__(self, path, *rest, **more):
        if Path(os.fsdecode(path)).absolute().parent in self.folders:
            raise OSError(30, "Read-only file system", str(path))
        return os_open(path, *rest, **more)


os_open = os.open


def test_a_read_only_dataset(folder, tmp_path, monkeypatch):
    root = shutil.copytree(folder, tmp_path / "images")
    (root / "ant/bad.jpg").write_text("x")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(files.os, "open", Refusing(root))
    events = []
    report = scan(str(root), None, 1, lambda done, _all: events.append(done), tell=events.append)
    assert "no manifest can be written beside the images (Read-only file system)" in events[0]
    assert "it will be images.hvdtrain-scan.npz, which training does not look for" in events[0]
    assert report.manifest == "images.hvdtrain-scan.npz"
    assert (here / report.manifest).is_file()
    assert len(report.bad) == 1
    monkeypatch.setattr(files.os, "open", Refusing(root, here))
    events.clear()
    report = scan(str(root), None, 1, tell=events.append)
    assert "nor here (Read-only file system): there will be only the report" in events[0]
    assert (report.manifest, report.manifest_fault, len(report.bad)) == (None, None, 1)


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_decoded(folder, tmp_path):
    decoded = []
    for output in (tmp_path / "none/m.npz", tmp_path):
        with pytest.raises(ResourceError, match=r"--output: .*: cannot be written"):
            scan(str(folder), output, 1, lambda *done: decoded.append(done))
    assert decoded == []


def test_a_disk_that_is_full_in_the_end_leaves_the_report(folder, tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.commands.scan.write_manifest", refuse)
    report = scan(str(folder), tmp_path / "m.npz", 1)
    assert report.images == COUNT
    assert report.manifest is None
    assert report.manifest_fault == f"{tmp_path}/m.npz: cannot be written: No space left on device"
