"""What folders hold beside images: counted and named, and links followed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hvdtrain.errors import DataError
from pipelines.sources import open_source
from pipelines.sources.left_out import left_out_of
from tests.unit.pipelines.samples import tree

HEADS = {
    "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\r",
    "webp": b"RIFF\x10\0\0\0WEBPVP8 ",
    "bmp": b"BM\x10\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0",
    "tiff": b"II*\0\x08\0\0\0",
    "ppm": b"P6\n2 2\n255\n",
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
    "j2k": b"\xff\x4f\xff\x51\0",
}


@pytest.mark.parametrize(
    "name",
    [
        "x.jfif",
        "x.JPE",
        "x.JPG",
        "x.Jpeg",
        "x.jpeg2000",
        "x.jp2",
        "x.J2K",
        "x.j2c",
        "x.tif",
        "x.pnm",
        "x.apng",
        "x.WebP",
        "x.mpo",
    ],
)
def test_known_endings(tmp_path, name):
    source = open_source(str(tree(tmp_path, "a/1.jpg", f"a/{name}")), "data.train")
    assert len(source) == 2
    assert not left_out_of(source)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", ["noending", "x.jpg_large", "x.dat", "x.gif"])
def test_other_endings_are_recognised_by_content(tmp_path, kind, name):
    tree(tmp_path, "a/1.jpg", "a/z")
    (tmp_path / "a" / name).write_bytes(HEADS[kind])
    source = open_source(str(tmp_path), "data.train")
    assert sorted(Path(source.name(i)).name for i in range(2)) == ["1.jpg", name]
    assert left_out_of(source).counts == {"without ending": 1}


def test_everything_else_is_counted_and_named(tmp_path):
    root = tree(
        tmp_path / "d",
        "ant/1.jpg",
        "ant/deep/2.png",
        "cow/1.jpg",
        "ant/3.gif",
        "ant/deep/4.GIF",
        "ant/.5.jpg",
        "ant/.git/6.jpg",
        "ant/.git/x/7",
        "ant/@eaDir/8.jpg",
        "ant/9.jpg.bak",
        "ant/10.jpg~",
        "__MACOSX/ant/._1.jpg",
        "loose.jpg",
        "README.md",
        ".hvdtrain-scan.npz",
    )
    (root / "ant/9.jpg.bak").write_bytes(HEADS["jpeg"])
    (root / "ant/gone.jpg").symlink_to("none")
    (root / "ant/loop").symlink_to("loop")
    (root / "bee").symlink_to("nowhere")
    os.mkfifo(root / "ant/pipe.jpg")
    found = left_out_of(open_source_unchecked(root))
    assert found.counts == {
        ".gif": 2,
        "hidden": 3,
        "in folders of the system": 2,
        ".bak": 1,
        ".jpg~": 1,
        "images outside class folders": 1,
        ".md": 1,
        "dangling links": 2,
        "dangling class folder bee": 1,
        "pipes and devices": 1,
    }
    assert found.first["dangling class folder bee"] == ["bee"]
    assert set(found.first["dangling links"]) == {"ant/gone.jpg", "ant/loop"}
    files = sum(len(files) for _, _, files in os.walk(root))
    assert sum(found.counts.values()) + 3 == files - 1  # three samples, and our own manifest


def open_source_unchecked(root):
    return open_source(str(root), "data.train", check=False)


def test_links_to_files_folders_and_classes_are_followed(tmp_path):
    tree(tmp_path, "all/ant/1.jpg", "all/ant/2.jpg", "all/bee/1.jpg", "d/cat/1.jpg")
    (tmp_path / "d/ant").symlink_to("../all/ant")
    (tmp_path / "d/cat/more").symlink_to("../../all/bee")
    (tmp_path / "d/cat/one.jpg").symlink_to("../../all/ant/1.jpg")
    source = open_source(str(tmp_path / "d"), "data.train")
    assert source.classes == ["ant", "cat"]
    assert source.labels.tolist() == [0, 0, 1, 1, 1]
    assert not left_out_of(source)


@pytest.mark.parametrize(("link", "target"), [("a/b", ".."), ("a/b", "."), ("a/x/y", "../../a")])
def test_links_that_lead_back_are_refused(tmp_path, link, target):
    tree(tmp_path, "d/a/1.jpg", "d/c/1.jpg", "d/a/x/2.jpg")
    (tmp_path / "d" / link).symlink_to(target)
    with pytest.raises(DataError, match="a link that leads back to a folder above it: remove it"):
        open_source(str(tmp_path / "d"), "data.train")


def test_two_links_that_lead_to_each_other_end(tmp_path):
    tree(tmp_path, "d/a/1.jpg", "d/b/1.jpg")
    for k in range(3):
        (tmp_path / f"d/a/l{k}").symlink_to("../b")
        (tmp_path / f"d/b/l{k}").symlink_to("../a")
    with pytest.raises(DataError, match="a link that leads back"):
        open_source(str(tmp_path / "d"), "data.train")


def test_deep_folders(tmp_path):
    inner = tmp_path / "d/a"
    (tmp_path / "d").mkdir()
    for _ in range(1100):
        inner.mkdir()
        inner /= "x"
    inner.with_name("1.jpg").write_bytes(b"x")
    assert len(open_source(str(tmp_path / "d"), "data.train")) == 1
    subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)  # too deep for shutil.rmtree


def test_a_folder_that_ends_like_an_image(tmp_path):
    source = open_source(str(tree(tmp_path, "a/1.jpg", "a/2.jpg/3.jpg")), "data.train")
    assert [os.path.relpath(source.name(i), tmp_path) for i in range(2)] == [
        "a/1.jpg",
        "a/2.jpg/3.jpg",
    ]


def test_folders_that_are_numbers_keep_the_count(tmp_path):
    for name in ("2", "10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "2" / "b.gif").write_bytes(b"GIF89a")
    source = open_source(str(tmp_path), "data.train")
    assert left_out_of(source).counts == {".gif": 1}
