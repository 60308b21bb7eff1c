"""Listing an image folder: complete, in order, and clear about what is wrong."""

from __future__ import annotations

import os

import numpy as np
import pytest

from hvdtrain.errors import DataError
from pipelines.sources import ImageFolder, open_source
from tests.unit.pipelines.samples import tree


def test_samples_are_sorted_labelled_and_readable(tmp_path):
    root = tree(tmp_path, "b/2.png", "b/10.JPG", "a/x.jpeg", "a/deep/y.WebP", "a/ünicode é.jpg")
    source = open_source(str(root), "data.train")
    names = [os.path.relpath(source.name(i), root) for i in range(len(source))]
    assert names == ["a/deep/y.WebP", "a/x.jpeg", "a/ünicode é.jpg", "b/10.JPG", "b/2.png"]
    assert source.classes == ["a", "b"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert [source.read(i).tobytes().decode() for i in range(5)] == names


def test_other_and_hidden_files_are_ignored(tmp_path):
    root = tree(
        tmp_path, "a/1.jpg", "a/notes.txt", "a/.2.jpg", ".cache/3.jpg", "loose.jpg", "a/jpg"
    )
    assert len(ImageFolder(str(root), "data.train")) == 1


def test_different_listings_have_different_fingerprints(tmp_path):
    one = ImageFolder(str(tree(tmp_path / "1", "a/1.jpg", "b/2.jpg")), "data.train")
    same = ImageFolder(str(tree(tmp_path / "2", "a/1.jpg", "b/2.jpg")), "data.train")
    others = [("a/1.jpg", "b/3.jpg"), ("a/1.jpg", "c/2.jpg"), ("a/1.jpg", "a/2.jpg", "b/2.jpg")]
    assert one.fingerprint == same.fingerprint
    for k, files in enumerate(others):
        other = ImageFolder(str(tree(tmp_path / f"other{k}", *files)), "data.train")
        assert other.fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ([], "none", "{}: no such folder; expected one sub-folder of images per class"),
        (["f"], "f", "{}: a file with an unknown ending; a list ends in .csv, .tsv or .txt"),
        (
            ["d/1.dat"],
            "d",
            "{}: no class folders in it; found .dat 1 (first: 1.dat); expected one sub-folder of "
            "images per class",
        ),
        (
            ["d/a/1.jpg", "d/b/2.txt"],
            "d",
            "{}/b: a class folder without images; found .txt 1 (first: b/2.txt)",
        ),
    ],
)
def test_what_is_no_dataset_is_refused_in_one_line(tmp_path, files, path, message):
    tree(tmp_path, *files)
    with pytest.raises(DataError) as error:
        open_source(str(tmp_path / path), "data.train")
    assert str(error.value) == "data.train: " + message.format(tmp_path / path)


@pytest.mark.parametrize("locked", ["d", "d/a"])
def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch, locked):
    root = tree(tmp_path, "d/a/1.jpg") / "d"
    allowed = os.scandir

    def scandir(path: bytes):
        if path == os.fsencode(tmp_path / locked):
            raise PermissionError(13, "Permission denied", path)
        return allowed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError) as error:
        open_source(str(root), "data.val")
    assert str(error.value) == (
        f"data.val: {tmp_path / locked}: cannot list the folder: Permission denied"
    )


def test_a_link_that_leads_in_a_circle_is_refused(tmp_path):
    root = tree(tmp_path, "a/1.jpg")
    (root / "a" / "again").symlink_to(root / "a")
    with pytest.raises(DataError, match="a/again: a link that leads back to a folder above it"):
        open_source(str(root), "data.train")


def test_a_deleted_file_is_named(tmp_path):
    source = ImageFolder(str(tree(tmp_path, "a/1.jpg")), "data.train")
    (tmp_path / "a/1.jpg").unlink()
    with pytest.raises(DataError) as error:
        source.read(0)
    assert str(error.value) == f"{tmp_path}/a/1.jpg: cannot read: No such file or directory"


def test_a_large_listing_is_compact(tmp_path):
    root = tree(tmp_path, *(f"a/n0123456_{i}.jpg" for i in range(2000)))
    source = ImageFolder(str(root), "data.train")
    held = source._names.ends.nbytes + source.labels.nbytes + len(source._names.block)
    assert held < 40 * len(source)
    assert isinstance(source.labels, np.ndarray)
    assert source.labels.dtype == np.int32


def test_a_table_of_paths_and_labels(tmp_path):
    tree(tmp_path, "x/1.jpg", "x/2.jpg", "y, z/3.jpg")
    tables = {
        "t.csv": 'path,label\nx/1.jpg,dog\n"y, z/3.jpg",cat\n\nx/2.jpg,dog\n',
        "t.tsv": "x/1.jpg\tdog\ny, z/3.jpg\tcat\nx/2.jpg\tdog\n",
        "t.txt": "x/1.jpg dog\r\ny, z/3.jpg  cat\nx/2.jpg dog",
    }
    for name, text in tables.items():
        (tmp_path / name).write_bytes(text.encode())
        source = open_source(str(tmp_path / name), "data.train")
        assert source.classes == ["cat", "dog"]
        assert source.labels.tolist() == [1, 0, 1]
        assert [source.read(i).tobytes() for i in range(3)] == [
            b"x/1.jpg",
            b"y, z/3.jpg",
            b"x/2.jpg",
        ]
        assert source.name(1) == f"{tmp_path}/y, z/3.jpg"


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("val/labels.csv", "2.JPEG,b\n1.JPEG,a\n"),
        ("val/val.txt", "2.JPEG b\n1.JPEG a\n"),
        ("val.csv", "2.JPEG,b\n1.JPEG,a\n"),
        ("val.txt", "2.JPEG b\n1.JPEG a\n"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\n2,b 1 2 3 4 b 5 6 7 8\n1,a 1 2 3 4\n"),
    ],
)
def test_a_flat_folder_with_a_label_file(tmp_path, place, text):
    tree(tmp_path, "val/1.JPEG", "val/2.JPEG")
    (tmp_path / place).write_text(text)
    source = open_source(str(tmp_path / "val"), "data.val")
    assert source.classes == ["a", "b"]
    assert [source.name(i) for i in range(2)] == [f"{tmp_path}/val/{k}.JPEG" for k in (2, 1)]
    assert source.labels.tolist() == [1, 0]


def test_class_numbers_are_named_by_a_synset_file(tmp_path):
    tree(tmp_path, "val/1.JPEG", "val/2.JPEG")
    (tmp_path / "val.txt").write_text("1.JPEG 10\n2.JPEG 2\n")
    numbered = open_source(str(tmp_path / "val"), "data.val")
    assert numbered.classes == ["2", "10"]
    names = [f"n{k:08d}" for k in range(11)]
    (tmp_path / "synset_words.txt").write_text("".join(f"{name} a, b\n" for name in names))
    source = open_source(str(tmp_path / "val"), "data.val")
    assert source.classes == names
    assert source.labels.tolist() == [10, 2]
    (tmp_path / "synset_words.txt").write_text("n1 a\n")
    with pytest.raises(DataError, match="label 10, but the synset file next to it has 1 lines"):
        open_source(str(tmp_path / "val"), "data.val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,x\nb.jpg\n", '{}:2: expected "path,label", found "b.jpg"'),
        ("a.jpg,x\n,y\n", '{}:2: expected "path,label", found ",y"'),
        ("path,label\n", '{}: lists no images; expected lines of "path,label"'),
        ('"a.jpg,x\n', '{}:1: unexpected end of data: is a quote (") not closed'),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text, message):
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(DataError) as error:
        open_source(str(table), "data.val")
    assert str(error.value).startswith("data.val: " + message.format(table))
