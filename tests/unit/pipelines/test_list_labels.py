"""Labels in lists of images: names, numbers with or without a synset file, and what is not clear."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvdtrain.config.data import Columns
from pipelines.sources import open_source
from tests.unit.pipelines.samples import tree
from tests.unit.pipelines.test_lists import ALL, DOG_CAT, listed, refusal


@pytest.fixture
def root(tmp_path) -> Path:
    return tree(tmp_path, *ALL)


@pytest.mark.parametrize("label", ["2", "0002", "10000000000000000000", "9" * 900])
def test_a_class_number_beyond_the_synset_file(root, label):
    (root / "synsets.txt").write_text("n1 a\nn2 b\n")
    message = refusal(root / "l.csv", f"0.jpg,1\n1.jpg,{label}\n")
    assert f"label {label[:40]}, but the synset file next to it has 2 lines" in message


def test_a_synset_file_that_is_no_text(root):
    (root / "synsets.txt").write_bytes(b"caf\xe9\nb\n")
    assert "synsets.txt: not UTF-8" in refusal(root / "l.csv", "0.jpg,0\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n1 a\n\nn2 b\n", "synsets.txt:2: empty; expected a class name"),
        ("great white shark\ngreat owl\n", "synsets.txt:2: 'great' is on line 1 too (a name ends"),
    ],
)
def test_a_synset_file_that_is_not_clear(root, text, message):
    (root / "synsets.txt").write_text(text)
    assert message in refusal(root / "l.csv", "0.jpg,0\n1.jpg,1\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.jpg,0.5\n1.jpg,1\n", "labels are numbers with a fraction (0.5)"),
        ("0.jpg,1.0\n1.jpg,-2e1\n", "labels are numbers with a fraction (-2e1)"),
        ("0.jpg,01\n1.jpg,1\n", "classes whose names differ in leading zeros only: 01, 1"),
        (
            "path,label,Split\n0.jpg,cat,\n1.jpg,dog,train\n2.jpg,cat,test\n",
            "l.csv:4: a row of test among rows of train: write one list for each part",
        ),
        ("name,label,is_valid\n0.jpg,a,False\n1.jpg,b,True\n", "l.csv:3: a row of True among"),
    ],
)
def test_labels_and_parts_that_are_not_meant(root, text, message):
    assert message in refusal(root / "l.csv", text)


def test_labels_that_look_like_numbers_among_names(root):
    assert listed(root / "l.csv", "0.jpg,0.5\n1.jpg,x\n") == [("0.jpg", "0.5"), ("1.jpg", "x")]
    assert listed(root / "l.csv", "0.jpg,-1\n1.jpg,1\n") == [("0.jpg", "-1"), ("1.jpg", "1")]


def test_a_column_of_parts_with_one_part_or_with_named_columns(root):
    text = "path,label,split\n0.jpg,dog,train\n1.jpg,cat,{}\n"
    assert listed(root / "l.csv", text.format("train")) == DOG_CAT
    columns = Columns(path="path", label="label")
    assert listed(root / "l.csv", text.format("val"), columns) == DOG_CAT


def test_an_image_with_several_labels(root):
    message = refusal(root / "l.csv", "0.jpg,dog\n1.jpg,cat\n./0.jpg,cat\n0.jpg,cat\n")
    assert "1 images have several labels, first 0.jpg: dog (line 1) and cat (line 3)" in message
    (root / "synsets.txt").write_text("cat\ndog\n")
    twice = listed(root / "l.csv", "0.jpg,1\n1.jpg,00\n0.jpg,01\n1.jpg,0\n")
    assert twice == [*DOG_CAT, ("0.jpg", "dog"), ("1.jpg", "cat")]


def test_class_numbers_are_in_the_order_of_their_values(root):
    (root / "l.csv").write_text("0.jpg,10\n1.jpg,9\n2.jpg,100000000000000000000\n")
    source = open_source(str(root / "l.csv"), "data.train")
    assert source.classes == ["9", "10", "100000000000000000000"]
