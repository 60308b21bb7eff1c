"""Staging: a correct copy, made once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hvdtrain.errors import ConfigError, DataError, ResourceError
from pipelines.commands.pack import pack
from pipelines.commands.pack_options import PackOptions
from pipelines.commands.stage import stage
from pipelines.sources import open_source


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "data"
    pack(str(folder), str(path), PackOptions((None, 32), shard_images=4))
    return path


def contents(root: Path) -> dict[str, bytes]:
    files = (file for file in root.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def test_everything_is_copied_once(packed, tmp_path):
    seen: list[tuple[int, int]] = []
    report = stage(str(packed), str(tmp_path / "d"), progress=lambda *done: seen.append(done))
    assert report.copied == 13  # two copies of six shards, and the index
    assert seen[-1][0] == seen[-1][1] == report.copied_bytes
    source, local = open_source(str(packed), "x"), open_source(str(tmp_path / "d"), "x")
    assert local.fingerprint == source.fingerprint
    for i in range(len(source)):
        assert local.read(i).tobytes() == source.read(i).tobytes()
        assert local.at(32).read(i).tobytes() == source.at(32).read(i).tobytes()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "d").rglob("*.tar")}
    again = stage(str(packed), str(tmp_path / "d"))
    assert (again.copied, again.kept) == (0, 13)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "d").rglob("*.tar")} == before


def test_one_copy_and_later_the_other(packed, tmp_path):
    stage(str(packed), str(tmp_path / "d"), copies=["32"])
    assert not (tmp_path / "d/orig").exists()
    local = open_source(str(tmp_path / "d"), "x")
    assert local.at(500).copy == "32"
    assert local.fingerprint == open_source(str(packed), "x").fingerprint
    report = stage(str(packed), str(tmp_path / "d"), copies=["orig"])
    assert (report.copied, report.kept) == (6, 7)
    local = open_source(str(tmp_path / "d"), "x")
    assert (local.at(500).copy, local.at(30).copy) == ("orig", "32")


def test_a_wrong_file_is_copied_again(packed, tmp_path):
    stage(str(packed), str(tmp_path / "d"))
    shard = tmp_path / "d/orig/00001.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    (tmp_path / "d/32/00000.tar").write_bytes(b"short")
    (tmp_path / "d/32/00002.tar").unlink()
    (tmp_path / "d/32/.00003.tar.part").write_bytes(b"left by a kill")
    assert stage(str(packed), str(tmp_path / "d")).copied == 3
    staged = contents(tmp_path / "d")
    for name in ("orig/00001.tar", "32/00000.tar", "32/00002.tar"):
        assert staged[name] == (packed / name).read_bytes()


def test_a_damaged_source_is_refused(packed, tmp_path):
    root = shutil.copytree(packed, tmp_path / "p")
    content = bytearray((root / "32/00001.tar").read_bytes())
    content[600] ^= 1
    (root / "32/00001.tar").write_bytes(content)
    with pytest.raises(
        DataError, match=r"SRC: .*32/00001\.tar: damaged: its size or checksum differs"
    ):
        stage(str(root), str(tmp_path / "d"))
    assert not (tmp_path / "d/32/00001.tar").exists()
    assert not (tmp_path / "d/dataset.json").exists()
    (root / "32/00001.tar").unlink()
    with pytest.raises(DataError, match=r"SRC: .*32/00001\.tar: cannot read: No such file"):
        stage(str(root), str(tmp_path / "d"))


def test_a_disk_that_is_too_small(packed, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(ResourceError, match=r"DST: .*: needs 0\.0 GB more, its disk has 0\.0 GB"):
        stage(str(packed), str(tmp_path / "d"))
    assert contents(tmp_path / "d") == {}


def test_other_folders_are_copied_whole(folder, tmp_path):
    report = stage(str(folder), str(tmp_path / "d"))
    assert contents(tmp_path / "d") == contents(folder)
    assert report.copied == len(contents(folder))
    assert stage(str(folder), str(tmp_path / "d")).copied == 0
    (tmp_path / "d/ant/0.JPEG").write_bytes((folder / "ant/0.JPEG").read_bytes()[::-1])
    assert stage(str(folder), str(tmp_path / "d")).copied == 1
    assert contents(tmp_path / "d") == contents(folder)


@pytest.mark.parametrize("place", ["SRC", "DST"])
def test_a_damaged_description_is_reported_in_one_line(packed, tmp_path, place):
    source, target = tmp_path / "SRC", tmp_path / "DST"
    shutil.copytree(packed, source)
    stage(str(source), str(target))
    for content, reason in (("{", "cannot be read"), ('{"format": 9}', "format 9; this version")):
        (tmp_path / place / "dataset.json").write_text(content)
        with pytest.raises(DataError, match=rf"{place}: .*: dataset\.json: {reason}"):
            stage(str(source), str(target))


def test_what_cannot_be_staged(packed, folder, tmp_path):
    with pytest.raises(DataError, match=r"SRC: .*: no such folder"):
        stage(str(tmp_path / "none"), str(tmp_path / "d"))
    with pytest.raises(ConfigError, match="--copies: no copy 99; there are orig, 32"):
        stage(str(packed), str(tmp_path / "d"), copies=["99"])
    with pytest.raises(ConfigError, match=r"--copies: .* is not a packed dataset"):
        stage(str(folder), str(tmp_path / "d"), copies=["32"])
    other = tmp_path / "other"
    shutil.copytree(folder / "ant", tmp_path / "images/ant")
    pack(str(tmp_path / "images"), str(other), PackOptions())
    stage(str(other), str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"DST: .*: holds another dataset"):
        stage(str(packed), str(tmp_path / "d"))


def test_links_are_followed_and_what_cannot_be_copied_is_counted(folder, tmp_path):
    root = tmp_path / "src"
    root.mkdir()
    (root / "ant").symlink_to(folder / "ant")
    (root / "own").mkdir()
    shutil.copy(folder / "bee/0.JPEG", root / "own/0.JPEG")
    (root / "own/link.JPEG").symlink_to(folder / "bee/1.JPEG")
    (root / "own/gone.JPEG").symlink_to("none")
    (root / "cat").symlink_to("nowhere")
    os.mkfifo(root / "own/pipe")
    report = stage(str(root), str(tmp_path / "d"))
    assert report.copied == 7 + 2
    assert report.left_out.counts == {"dangling links": 2, "pipes and devices": 1}
    assert not any(file.is_symlink() for file in (tmp_path / "d").rglob("*"))
    local = open_source(str(tmp_path / "d"), "x")
    assert (len(local), local.classes) == (9, ["ant", "own"])
    (root / "own/up").symlink_to("..")
    with pytest.raises(DataError, match=r"SRC: .*own/up: a link that leads back"):
        stage(str(root), str(tmp_path / "d"))


def test_what_left_the_source_is_told_or_deleted(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "src")
    stage(str(root), str(tmp_path / "d"))
    (tmp_path / "d/.hvdtrain-scan.npz").write_bytes(b"ours")
    (root / "ant/0.JPEG").unlink()
    shutil.rmtree(root / "bee")
    report = stage(str(root), str(tmp_path / "d"))
    assert (len(report.extra), report.deleted) == (8, False)
    assert report.extra[0] == "ant/0.JPEG"
    assert (tmp_path / "d/bee/0.JPEG").is_file()
    report = stage(str(root), str(tmp_path / "d"), delete=True)
    assert (len(report.extra), report.deleted) == (8, True)
    assert not (tmp_path / "d/bee").exists()
    staged = contents(tmp_path / "d")
    assert staged.pop(".hvdtrain-scan.npz") == b"ours"
    assert staged == contents(root)
    assert stage(str(root), str(tmp_path / "d")).extra == []


def test_a_file_in_place_of_a_folder(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "src")
    stage(str(root), str(tmp_path / "d"))
    shutil.rmtree(root / "bee")
    (root / "bee").write_text("a file now")
    stage(str(root), str(tmp_path / "d"), delete=True)
    assert contents(tmp_path / "d") == contents(root)


def test_deleting_spares_folders_that_were_not_staged_and_files_behind_links(folder, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"DST: .*home: was not made by data stage"):
        stage(str(folder), str(tmp_path / "home"), delete=True)
    assert (tmp_path / "home/thesis.tex").is_file()
    stage(str(folder), str(tmp_path / "d"))
    (tmp_path / "d/out").symlink_to(tmp_path / "home")
    assert stage(str(folder), str(tmp_path / "d"), delete=True).extra == ["out"]
    assert (tmp_path / "home/thesis.tex").is_file()
    assert not (tmp_path / "d/out").is_symlink()


@pytest.mark.parametrize(
    ("src", "dst", "message"),
    [
        ("s", "s", "is SRC itself"),
        ("s", "s/copy", "lies in SRC"),
        ("s", "s/a/b/copy", "lies in SRC"),
        ("s/a", "s", "SRC lies in it"),
        ("s", "link/copy", "lies in SRC"),
        ("link", "s", "is SRC itself"),
        ("empty", "d", "SRC: .*empty: an empty folder"),
        ("s/a/1.jpg", "d", "SRC: .*1.jpg: a file; data stage copies folders"),
    ],
)
def test_places_that_do_not_go_together(tmp_path, src, dst, message):
    (tmp_path / "s/a").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "s/a/1.jpg").write_bytes(b"x")
    (tmp_path / "link").symlink_to("s")
    with pytest.raises(DataError, match=message):
        stage(str(tmp_path / src), str(tmp_path / dst))
    assert sorted(p.name for p in (tmp_path / "s").rglob("*")) == ["1.jpg", "a"]


def test_a_description_that_names_files_outside(packed, tmp_path):
    root = shutil.copytree(packed, tmp_path / "p")
    text = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(text.replace('"32/00000.tar"', '"../../etc/x"'))
    with pytest.raises(DataError, match="names a file outside of the dataset"):
        stage(str(root), str(tmp_path / "d"))
    (root / "dataset.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="cannot be read"):
        stage(str(root), str(tmp_path / "d"))
