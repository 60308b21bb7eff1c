"""Which tar files a path stands for, and when a folder is one of shards."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile

import pytest

from hvdtrain.errors import DataError
from pipelines.sources import ImageFolder, archives, open_source
from pipelines.sources.left_out import LeftOut
from pipelines.sources.shard_paths import is_shards, shard_paths
from pipelines.sources.tar import TarShards, write_index
from tests.unit.pipelines.tar_samples import contents, make, sample


def images(path) -> list[bytes]:
    return [image for image, _label in contents(open_source(str(path), "data.train"))]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("s-*.tar", [b"00", b"01", b"02", b"10"]),
        ("s-0?.tar", [b"00", b"01", b"02"]),
        ("s-[01]0.tar", [b"00", b"10"]),
        ("s-{10,0*}.tar", [b"10", b"00", b"01", b"02"]),
        ("s-{02..00}.tar", [b"02", b"01", b"00"]),
        ("*", [b"00", b"01", b"02", b"10"]),
    ],
)
def test_patterns(tmp_path, pattern, expected):
    for key in ("00", "01", "02", "10"):
        make(tmp_path / f"s-{key}.tar", *sample(key, 0))
    make(tmp_path / "._s-00.tar", *sample("hidden", 0))
    assert images(tmp_path / pattern) == expected
    assert write_index(str(tmp_path / pattern)).images == len(expected)
    assert images(tmp_path / pattern) == expected


def test_a_file_whose_name_is_a_pattern(tmp_path):
    for name in ("s-[0].tar", "s-{0,1}.tar", "s-0.tar"):
        make(tmp_path / name, *sample(name[:-4].replace(".", ""), 0))
    assert images(tmp_path / "s-[0].tar") == [b"s-[0]"]
    assert images(tmp_path / "s-{0,1}.tar") == [b"s-{0,1}"]


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("s-{0..99999999}.tar", "stands for more than 1,000,000 files"),
        ("s-{0..999}{0..999}{0..1}.tar", "stands for more than 1,000,000 files"),
        ("{0..9}" * 300 + ".tar", "stands for more than 1,000,000 files"),
        ("s-{0.." + "9" * 5000 + "}.tar", "stands for more than 1,000,000 files"),
        ("none-*.tar", "no file matches this pattern"),
        ("s-{0..1}.tar", "no such file; expected tar shards"),
        ("s-{a..c}.tar", "no such file; expected tar shards"),
        ("s-?.tar", "not a regular file; expected tar shards"),
        ("s-{f,[e-f]}.tar", r"this pattern names .*/s-f\.tar more than once"),
    ],
)
def test_patterns_that_cannot_be_used(tmp_path, pattern, problem):
    os.mkfifo(tmp_path / "s-f.tar")
    with pytest.raises(DataError, match=problem):
        open_source(str(tmp_path / pattern), "data.train")


@pytest.mark.parametrize("name", ["x.tar", "plain"])
def test_a_folder_with_the_name_of_a_tar_file_is_a_folder(tmp_path, name):
    folder = tmp_path / name
    (folder / "ant").mkdir(parents=True)
    (folder / "ant/0.jpg").write_bytes(b"x")
    assert isinstance(open_source(str(folder), "data.train"), ImageFolder)
    (tmp_path / "shards.tar").mkdir()
    make(tmp_path / "shards.tar/0.tar", *sample("0", 0))
    assert images(tmp_path / "shards.tar") == [b"0"]
    (tmp_path / "empty.tar").mkdir()
    with pytest.raises(DataError, match=r"empty\.tar: no class folders"):
        open_source(str(tmp_path / "empty.tar"), "data.train")


def test_tar_files_among_class_folders_are_stray(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep/0.jpg").write_bytes(b"x")
    make(tmp_path / "ant.tar", *sample("a", 0))
    assert not is_shards(str(tmp_path))
    assert open_source(str(tmp_path), "data.train").classes == ["ant", "bee"]


def test_what_is_beside_shards_is_counted(tmp_path):
    make(tmp_path / "s-0.tar", *sample("0", 0))
    make(tmp_path / "S-1.TAR", *sample("1", 1))
    make(tmp_path / "._s-0.tar", *sample("2", 1))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a.txt").write_text("x")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "sizes.json").write_text("{}")
    (tmp_path / "s-0.tar.gz").write_bytes(gzip.compress(b"x"))
    (tmp_path / "gone.txt").symlink_to("nowhere")
    write_index(str(tmp_path))
    source = open_source(str(tmp_path), "data.train")
    assert source.left_out.counts == {
        "compressed copies of tar files": 1,
        "folders": 1,
        "hidden": 1,
        ".json": 1,
        "dangling links": 1,
    }
    assert images(tmp_path) == [b"1", b"0"]


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", content)
    return buffer.getvalue()


COMPRESSED = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: b"\x28\xb5\x2f\xfd" + content,
    "zip": zipped,
}


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("name", ["s-0.tar", "s-0.tar.gz", "s-0.tgz", "s-0", "s-0.TAR.ZST"])
def test_compressed_shards_are_refused_whatever_their_name(tmp_path, kind, name):
    plain = make(tmp_path / "plain", *sample("a", 0)).read_bytes()
    (tmp_path / "plain").unlink()
    (tmp_path / name).write_bytes(COMPRESSED[kind](plain))
    paths = [
        tmp_path / name,
        tmp_path / name.replace("0", "{0..1}"),
        tmp_path / name.replace("0", "*"),
    ]
    paths += [] if name == "s-0" else [tmp_path]
    for path in paths:
        with pytest.raises(DataError) as error:
            open_source(str(path), "data.train")
        assert str(error.value).startswith(f"data.train: {tmp_path / name}: ")
        assert kind in str(error.value)
    assert archives.kind(str(tmp_path / name)) == kind


def test_one_compressed_shard_among_others_is_refused(tmp_path):
    make(tmp_path / "s-0.tar", *sample("a", 0))
    (tmp_path / "s-1.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match=r"s-1\.tar\.gz: compressed by gzip"):
        open_source(str(tmp_path), "data.train")


def test_empty_tars(tmp_path):
    make(tmp_path / "s-0.tar")
    with pytest.raises(DataError, match=r"no images in the tar files; left out: empty tar files 1"):
        open_source(str(tmp_path), "data.train")
    make(tmp_path / "s-1.tar", *sample("a", 0))
    source = open_source(str(tmp_path), "data.train")
    assert source.left_out.counts == {"empty tar files": 1}
    (tmp_path / "s-2.tar").touch()
    with pytest.raises(DataError, match=r"s-2\.tar: at byte 0: an empty file"):
        open_source(str(tmp_path), "data.train")


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "f.tar")
    with pytest.raises(DataError, match=r"f\.tar: not a regular file"):
        open_source(str(tmp_path / "f.tar"), "data.train")
    make(tmp_path / "s-1.tar", *sample("a", 0))
    assert open_source(str(tmp_path), "data.train").left_out.counts == {"no files": 1}


def test_links_to_shards_are_followed(tmp_path):
    make(tmp_path / "real", *sample("a", 0))
    (tmp_path / "w").mkdir()
    (tmp_path / "w/s.tar").symlink_to("../real")
    assert images(tmp_path / "w") == [b"a"]


def test_what_is_left_out_is_in_the_index_and_shown(tmp_path):
    make(tmp_path / "s.tar", *sample("a", 0), ("a.txt", b"x"), ("._a.jpg", b"x"), ("b.gif", b"x"))
    plain = TarShards(str(tmp_path), "x").left_out
    report = write_index(str(tmp_path))
    assert report.left_out == plain == TarShards(str(tmp_path), "x").left_out
    assert plain.text() == "left out: .gif 1, .txt 1, hidden 1 (first: b.gif)"
    assert shard_paths(str(tmp_path), "x", LeftOut()) == [f"{tmp_path}/s.tar"]
