"""Classes are names: matched whatever their order, their Unicode form and the kind of dataset."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.config.data import Data
from hvdtrain.errors import DataError
from pipelines import copies
from pipelines.commands.pack import pack
from pipelines.commands.scan import scan
from pipelines.datasets import open_datasets
from pipelines.reading import Classes
from pipelines.sources import ImageFolder, Source, open_source
from pipelines.sources.classes import (
    Relabelled,
    describe_classes,
    difference,
    matched_rows,
    natural_order,
    renumbered,
)
from pipelines.sources.left_out import left_out_of
from tests.unit.pipelines.pack_samples import TWO
from tests.unit.pipelines.samples import photograph

CAFE = "caf\u00e9"
IN_TWO_PARTS = unicodedata.normalize("NFD", CAFE)


def tree(root: Path, **classes: int) -> str:
    return folders(root, classes)


def folders(root: Path, classes: dict[str, int]) -> str:
    """Class folders with so many images each."""
    for name, images in classes.items():
        (root / name).mkdir(parents=True)
        for k in range(images):
            photograph(k, 24, 32).save(root / name / f"{k}.jpg")
    return str(root)


def labelled(source: Source, root: str) -> dict[str, str]:
    """The class of every sample by its name."""
    return {
        source.name(i).removeprefix(f"{root}/"): source.classes[source.labels[i]]
        for i in range(len(source))
    }


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["0", "1", "10", "11", "2"], ["0", "1", "2", "10", "11"]),
        (["00", "01", "1", "10", "2"], ["00", "01", "1", "2", "10"]),
        (["b", "10", "2"], ["b", "10", "2"]),
        (["-1", "10", "2"], ["-1", "10", "2"]),
        (["٣", "٢"], ["٣", "٢"]),
    ],
)
def test_only_names_that_are_all_numbers_are_sorted_by_value(names, ordered):
    assert natural_order(names) == ordered


def test_numeric_folders_are_numbered_by_value_and_their_samples_stay(tmp_path):
    root = tree(tmp_path, **{str(k): 1 for k in range(12)})
    source, plain = open_source(root, "data.train"), ImageFolder(root, "data.train")
    assert source.classes == [str(k) for k in range(12)]
    assert plain.classes[:4] == ["0", "1", "10", "11"]
    assert [source.name(i) for i in range(12)] == [plain.name(i) for i in range(12)]
    assert [source.read(i).tobytes() for i in range(12)] == [
        plain.read(i).tobytes() for i in range(12)
    ]
    assert labelled(source, root) == {f"{k}/0.jpg": str(k) for k in range(12)}


def test_a_scanned_folder_with_numeric_names_keeps_its_manifest(tmp_path):
    root = tree(tmp_path, **{str(k): 1 for k in range(12)})
    scan(root, None, 1)
    assert open_source(root, "data.train").classes[2] == "2"


@pytest.mark.parametrize(
    ("expected", "found", "text"),
    [
        ("ab", "ba", ""),
        ("ab", "a", "missing b"),
        ("ab", "abc", "extra c"),
        ("abcdef", "ax", "missing b, c, d, … (5 in all); extra x"),
        ([CAFE], [IN_TWO_PARTS], ""),
        (["a\nb"], ["\udcff"], "missing a\\nb; extra \\udcff"),
        (["crane", "crane"], ["crane"], "missing crane"),
    ],
)
def test_differences_are_named(expected, found, text):
    assert difference(list(expected), list(found)).text() == text


def test_a_validation_set_is_matched_by_name(tmp_path):
    train = tree(tmp_path / "t", ant=2, bee=2, cat=2)
    table = tmp_path / "v.csv"
    table.write_text("t/cat/0.jpg,cat\nt/ant/0.jpg,ant\nt/cat/1.jpg,cat\n")
    found = open_datasets(Data(train=train, val=str(table)), None, seed=0)
    assert found.classes == found.sources["val"].classes == ["ant", "bee", "cat"]
    assert found.sources["val"].labels.tolist() == [2, 0, 2]
    assert found.warnings == [f"data.val: {table}: has no images of 1 of 3 classes: bee"]


def test_a_class_that_only_the_validation_set_has_is_refused(tmp_path):
    train, val = tree(tmp_path / "t", ant=1, bee=1), tree(tmp_path / "v", ant=1, wasp=1)
    with pytest.raises(DataError) as error:
        open_datasets(Data(train=train, val=val), None, seed=0)
    assert str(error.value) == (
        f"data.val: {val}: classes differ from data.train: missing bee; extra wasp"
    )


def test_a_validation_set_may_have_an_empty_class_folder(tmp_path):
    data = Data(train=tree(tmp_path / "t", ant=1, bee=1), val=tree(tmp_path / "v", ant=2, bee=0))
    found = open_datasets(data, None, seed=0)
    assert [w.split(": ", 2)[2] for w in found.warnings] == ["has no images of 1 of 2 classes: bee"]
    assert found.sources["val"].labels.tolist() == [0, 0]
    assert left_out_of(found.sources["val"]).counts == {"class folders without images": 1}
    with pytest.raises(DataError, match=r"data.train: .*: a class folder without images"):
        open_source(str(tmp_path / "v"), "data.train")
    with pytest.raises(
        DataError, match=r"data.val: .*: no images in it; found class folders without"
    ):
        open_source(tree(tmp_path / "w", ant=0), "data.val")


def test_both_unicode_forms_of_a_name_are_one_class(tmp_path):
    train = folders(tmp_path / "t", {CAFE: 1, "zoo": 1})
    val = folders(tmp_path / "v", {IN_TWO_PARTS: 1, "zoo": 1})
    found = open_datasets(Data(train=train, val=val), None, seed=0)
    assert found.sources["val"].classes == [CAFE, "zoo"]
    assert labelled(found.sources["val"], val)[f"{IN_TWO_PARTS}/0.jpg"] == CAFE


def test_a_dataset_with_both_forms_of_a_name_is_refused(tmp_path):
    root = folders(tmp_path, {CAFE: 1, IN_TWO_PARTS: 1})
    with pytest.raises(DataError, match=r"Unicode form only: cafe\\u0301, caf\\xe9; rename"):
        open_source(root, "data.train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "cat "), "classes whose names differ in blanks around them only: 'cat', 'cat '"),
        (("1", "01", "7"), "classes whose names differ in leading zeros only: 01, 1; rename"),
    ],
)
def test_names_that_a_reader_would_confuse(tmp_path, names, message):
    root = tree(tmp_path, **dict.fromkeys(names, 1))
    with pytest.raises(DataError) as error:
        open_source(root, "data.train")
    assert str(error.value).startswith(f"data.train: {root}: {message}")


def test_one_class_is_a_warning(tmp_path):
    data = Data(train=tree(tmp_path / "d", ant=2))
    warnings = open_datasets(data, None, seed=0).warnings
    assert [w.split(": ")[2] for w in warnings] == ["has one class only, ant"]


def test_the_order_of_a_checkpoint_is_kept(tmp_path):
    root = tree(tmp_path, **{str(k): 1 for k in range(11)})
    old = open_datasets(Data(train=root), [], seed=0)  # of a version that did not record the names
    assert old.classes == ImageFolder(root, "data.train").classes
    backwards = [str(k) for k in reversed(range(11))]
    found = open_datasets(Data(train=root), backwards, seed=0)
    assert found.classes == found.sources["train"].classes == backwards
    assert labelled(found.sources["train"], root) == labelled(old.sources["train"], root)
    assert found.fingerprints == old.fingerprints


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        (["ant", "wasp"], "missing wasp; extra bee"),
        (["ant", "bee", "cat"], "missing cat"),
        (["ant"], "extra bee"),
    ],
)
def test_other_classes_than_the_checkpoint_has_are_refused(tmp_path, classes, text):
    root = tree(tmp_path, ant=1, bee=1)
    with pytest.raises(DataError) as error:
        open_datasets(Data(train=root), classes, seed=0)
    assert str(error.value) == (
        f"data.train: {root}: classes differ from those the checkpoint was trained with: {text}"
    )


def test_every_copy_of_a_packed_dataset_is_renumbered(tmp_path):
    root = tree(tmp_path / "t", ant=2, bee=1)
    pack(root, tmp_path / "p", TWO)
    source = renumbered(open_source(str(tmp_path / "p"), "data.train"), ["bee", "ant"])
    assert isinstance(source, Relabelled)
    for side in (8, None):
        copy = copies.view(source, side)
        assert copy.classes == ["bee", "ant"]
        assert copy.labels.tolist() == [1, 1, 0]
        assert len(copy.read(2))


@pytest.mark.parametrize(
    ("names", "suggested"),
    [
        (("train", "val", "test"), {"data.train": "train", "data.val": "val"}),
        (("Train", "Test"), {"data.train": "Train", "data.val": "Test"}),
        (("training_set", "Test_set"), {"data.train": "training_set", "data.val": "Test_set"}),
        (("images-train", "val2017"), {"data.train": "images-train", "data.val": "val2017"}),
        (("trainset", "evalset"), {"data.train": "trainset", "data.val": "evalset"}),
        (("validation",), {"data.train": "validation", "data.val": "validation"}),
    ],
)
def test_the_parts_of_a_dataset_are_not_its_classes(tmp_path, names, suggested):
    for name in names:
        tree(tmp_path / name, cat=1, dog=1)
    for key, likely in suggested.items():
        with pytest.raises(DataError) as error:
            open_source(str(tmp_path), key)
        assert str(error.value) == (
            f"{key}: {tmp_path}: its folders {', '.join(sorted(names))} are parts of a dataset, "
            f"not classes: {key}={tmp_path / likely}?"
        )


@pytest.mark.parametrize("names", [("train", "tram"), ("valley", "test"), ("train_a", "train_b")])
def test_classes_may_be_called_like_parts(tmp_path, names):
    root = tree(tmp_path, **dict.fromkeys(names, 1))
    assert open_source(root, "data.train").classes == sorted(names)
    if "tram" in names:
        tree(tmp_path / "train" / "steam", fast=1)
        assert len(open_source(root, "data.train")) == 3


def test_the_classes_in_one_line():
    labels = np.array([0, 0, 0, 2])
    assert describe_classes(["a", "b", "c"], labels).text() == "3 (a, b, c), 0–3 images each"
    many = Classes(1000, ["a\n", "b"], 7, 7)
    assert many.text() == "1,000 (a\\n, b, …), 7 images each"


@pytest.mark.parametrize(
    ("theirs", "ours", "rows"),
    [("ab", "ab", [0, 1]), ("ba", "ab", [1, 0]), ("ab", "ac", []), ("abc", "ab", [])],
)
def test_rows_of_a_classifier(theirs, ours, rows):
    assert matched_rows(list(theirs), list(ours)) == rows
