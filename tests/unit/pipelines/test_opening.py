"""A path is recognised by what is there, and a wrong one is answered with what was seen."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from hvdtrain.errors import DataError
from pipelines.sources import open_source
from pipelines.sources.left_out import left_out_of
from tests.unit.pipelines.samples import tree


def refusal(path, key="data.train") -> str:
    with pytest.raises(DataError) as error:
        open_source(str(path), key)
    assert "\n" not in str(error.value)
    return str(error.value)


def shard(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in (("0.cls", b"0"), ("0.jpg", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("files", "key", "likely"),
    [
        (("train/a/1.jpg", "val/a/1.jpg", "test/a/1.jpg"), "data.train", "data.train={}/train?"),
        (("train/a/1.jpg", "val/a/1.jpg"), "data.val", "data.val={}/val?"),
        (("Training/a/1.jpg", "validation/a/1.jpg"), "PATH", ": {}/Training?"),
        (("train/1.jpg", "test/2.jpg"), "data.train", "data.train={}/train?"),
        (("train/a/1.jpg",), "data.train", "data.train={}/train?"),
        (("train/a/1.jpg", "val/a/1.jpg", "meta/x.txt"), "data.train", "data.train={}/train?"),
        (("valid/a/1.jpg", "test/a/1.jpg"), "data.train", "data.train={}/"),
    ],
)
def test_a_folder_of_splits(tmp_path, files, key, likely):
    root = tree(tmp_path / "d", *files)
    message = refusal(root, key)
    assert "are parts of a dataset, not classes" in message
    assert likely.format(root) in message


def test_classes_that_are_called_like_a_split_among_others(tmp_path):
    root = tree(tmp_path / "d", "train/1.jpg", "bus/1.jpg", "test/1.jpg")
    assert open_source(str(root), "data.train").classes == ["bus", "test", "train"]


@pytest.mark.parametrize(
    ("files", "likely"),
    [
        (("data/a/1.jpg", "data/b/1.jpg"), "{}/data"),
        (("x/y/z/a/1.jpg", "x/y/z/b/1.jpg"), "{}/x/y/z"),
        (("x/train/a/1.jpg", "x/val/a/1.jpg"), "{}/x/train"),
        (("x/images/a/1.jpg", "x/images/b/1.jpg", "x/meta/a.txt"), "{}/x/images"),
        (("x/Data/y/train/a/1.jpg", "x/Data/y/val/1.jpg", "x/Notes/a.xml"), "{}/x/Data/y/train"),
    ],
)
def test_one_level_too_high(tmp_path, files, likely):
    root = tree(tmp_path / "d", *files)
    message = refusal(root)
    assert "its only folder holds no images but folders of images" in message
    assert message.endswith(f"name {likely.format(root)}")


def test_shards_one_level_deeper(tmp_path):
    shard(tmp_path / "d/sub/0.tar")
    message = refusal(tmp_path / "d")
    assert message.endswith(
        f"its only folder holds tar files: one level too high; name {tmp_path}/d/sub"
    )


@pytest.mark.parametrize("beside", ["masks/1.png", "labels/1.txt", "Annotations/1.xml"])
def test_folders_of_images_and_what_belongs_to_them(tmp_path, beside):
    message = refusal(tree(tmp_path / "d", "images/1.jpg", beside))
    assert "hold images and what belongs to them, not classes" in message
    root = tree(tmp_path / "e", "masks/1.jpg", "hats/1.jpg")
    assert open_source(str(root), "data.train").classes == ["hats", "masks"]


def test_images_deeper_in_classes_are_theirs(tmp_path):
    root = tree(tmp_path / "d", "a/images/1.jpg", "b/images/1.jpg", "b/images/more/2.jpg")
    assert open_source(str(root), "data.train").classes == ["a", "b"]
    root = tree(tmp_path / "e", "only/images/1.jpg")
    assert open_source(str(root), "data.train").classes == ["only"]


def test_a_flat_folder_is_told_how_to_get_labels(tmp_path):
    tree(tmp_path, "d/1.jpg", "d/2.jpg", "names.csv")
    message = refusal(tmp_path / "d")
    assert "d: 2 images, but no class folders and no labels for them" in message
    assert f"write the list {tmp_path}/d.csv" in message
    assert "beside it lies names.csv, which is not named for this folder" in message
    assert len(open_source(str(tmp_path / "d"), "PATH", unlabelled=True)) == 2


def test_one_class_named_instead_of_all(tmp_path):
    tree(tmp_path, "d/a/1.jpg", "d/b/1.jpg")
    assert f"if a is one class of several, name {tmp_path}/d" in refusal(tmp_path / "d/a")


def test_one_folder_of_images_beside_a_list(tmp_path):
    root = tree(tmp_path / "d", "images/1.jpg", "labels.csv")
    assert (
        f"one folder of images and a list: no class folders; name the list, {root}/labels.csv"
        in (refusal(root))
    )
    root = tree(tmp_path / "e", "images/1.jpg", "2.jpg")
    assert "1 images and one folder of images: no classes" in refusal(root)


def test_class_folders_win_over_stray_tars(tmp_path):
    root = tree(tmp_path / "d", "a/1.jpg", "b/1.jpg")
    shard(root / "old.tar")
    source = open_source(str(root), "data.train")
    assert source.classes == ["a", "b"]
    assert left_out_of(source).first == {".tar": ["old.tar"]}
    shard(tmp_path / "e/s.tar")
    tree(tmp_path / "e", "notes/x.txt")
    assert len(open_source(str(tmp_path / "e"), "data.train")) == 1
    tree(tmp_path / "e", "preview/1.jpg")
    assert "tar files (s.tar) and images (preview): which are the dataset?" in refusal(
        tmp_path / "e"
    )


def test_archives_and_other_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a/1.jpg", b"x")
    assert "d.zip: a zip archive; unpack it (unzip" in refusal(tmp_path / "d.zip")
    with tarfile.open(tmp_path / "d.tar.xz", "w:xz"):
        pass
    assert "d.tar.xz: compressed by xz; " in refusal(tmp_path / "d.tar.xz")
    with tarfile.open(tmp_path / "noending", "w") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    assert "noending: no images in the tar files" in refusal(tmp_path / "noending")
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    assert "1.jpg: a single image; expected a folder with one sub-folder" in refusal(
        tmp_path / "1.jpg"
    )
    (tmp_path / "l.lst").write_text("0\t1\ta.jpg\n")
    assert "a list ends in .csv, .tsv or .txt" in refusal(tmp_path / "l.lst")
    (tmp_path / "empty").mkdir()
    assert "empty: no class folders in it; expected" in refusal(tmp_path / "empty")
    assert "no path has a NUL character" in refusal("a\0b")


LIST = "1.jpg,a\n2.jpg,b\n"


@pytest.mark.parametrize(
    ("folder", "table"),
    [
        ("val", "val.csv"),
        ("test", "test.csv"),
        ("images", "images.tsv"),
        ("images", "images/labels.csv"),
        ("images", "labels.csv"),
        ("validation", "val.csv"),
        ("ILSVRC2012_img_val", "val.txt"),
        ("test", "test/test.csv"),
        ("val", "LOC_val_solution.csv"),
    ],
)
def test_label_files_of_a_folder(tmp_path, folder, table):
    tree(tmp_path, f"{folder}/1.jpg", f"{folder}/2.jpg")
    (tmp_path / table).write_text(LIST)
    assert open_source(str(tmp_path / folder), "data.val").classes == ["a", "b"]


@pytest.mark.parametrize(
    ("folder", "table"),
    [
        ("test", "val.csv"),
        ("test", "val.txt"),
        ("test", "test/val.csv"),
        ("test", "LOC_val_solution.csv"),
        ("train", "val.csv"),
        ("test", "labels.csv"),
        ("validation", "val.csv"),
    ],
)
def test_label_files_of_another_folder(tmp_path, folder, table):
    tree(tmp_path, f"{folder}/1.jpg", f"{folder}/2.jpg", "val/1.jpg", "val/2.jpg")
    (tmp_path / table).write_text(LIST)
    assert "no labels for them" in refusal(tmp_path / folder)


def test_images_that_the_list_of_their_folder_lacks(tmp_path):
    tree(tmp_path, "val/1.jpg", "val/2.jpg", "val/3.jpg", "val/x.gif", "val/labels.csv")
    (tmp_path / "val/labels.csv").write_text(LIST)
    (tmp_path / "val.txt").write_text("1.jpg 1\n3.jpg 2\n")
    source = open_source(str(tmp_path / "val"), "data.val")
    assert source.classes == ["1", "2"]
    assert left_out_of(source).counts == {
        "images that the list lacks": 1,
        ".gif": 1,
        "label files beside the one in use": 1,
    }
    (tmp_path / "val/val.txt").write_text("2.jpg 3\n")
    counts = left_out_of(open_source(str(tmp_path / "val"), "data.val")).counts
    assert counts[".gif"] == 1
    assert counts["label files beside the one in use"] == 2
    assert ".txt" not in counts
    (tmp_path / "val.txt").write_text("val/1.jpg 1\nval/3.jpg 2\n")
    assert "its paths begin beside the list: name the list itself" in refusal(tmp_path / "val")
