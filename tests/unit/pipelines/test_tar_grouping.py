"""Which members are a sample and what its label is, as the webdataset library reads them."""

from __future__ import annotations

import json
import re

import pytest

from hvdtrain.errors import DataError
from pipelines.sources import open_source
from pipelines.sources.tar import TarShards
from tests.unit.pipelines.tar_samples import contents, make, sample

Files = list[tuple[str, bytes]]


def opened(folder, *files: tuple[str, bytes]) -> TarShards:
    return TarShards(str(make(folder / "s.tar", *files)), "data.train")


@pytest.mark.parametrize(
    ("files", "samples", "left_out"),
    [
        (sample("a", 0), 1, {}),
        ([("./d.e/a.JPG", b"x"), ("./d.e/a.CLS", b"0")], 1, {}),
        ([*sample("a", 0), *sample("d/a", 1), *sample("a", 1)], 3, {}),
        ([*sample("a", 0), ("a.txt", b"a dog"), ("a.mask.png", b"m")], 1, {".txt": 1, ".mask.png": 1}),
        ([("README", b"x"), *sample("a", 0), ("d/LICENSE", b"y")], 1, {"no extension": 2}),
        ([("a.jpg", b"x"), ("README", b"x"), ("a.cls", b"0")], 1, {"no extension": 1}),
        ([("a.jpg", b"x"), ("._a.jpg", b"m"), ("a.cls", b"0"), (".DS_Store", b"")], 1, {"hidden": 2}),
        ([*sample(".cache/a", 0), *sample("b", 1)], 1, {"hidden": 2}),
        (
            [*sample("b", 0), ("__MACOSX/d/._b.jpg", b"m"), ("__MACOSX/c.jpg", b"m")],
            1,
            {"hidden": 1, "__MACOSX": 1},
        ),
        ([*sample("d/b", 0), ("d/@eaDir/b.jpg", b"t"), ("d/@eaDir/b.cls", b"t")], 1, {"@eaDir": 2}),
        ([("__meta__/about.json", b"{}"), *sample("a", 0)], 1, {"webdataset metadata": 1}),
        ([*sample("a", 0), ("b.cls", b"1"), *sample("c", 1)], 2, {"labels without an image": 1}),
        ([*sample("a", 0), ("b.cls", b"1"), ("b.gif", b"1")], 1, {"labels without an image": 1, ".gif": 1}),
        ([*sample("a", 0), ("b." + "x" * 99, b"1")], 1, {"other": 1}),
    ],
)  # fmt: skip
def test_what_is_a_sample_and_what_is_left_out(tmp_path, files, samples, left_out):
    source = opened(tmp_path, *files)
    assert len(source) == samples
    assert source.left_out.counts == left_out


def test_no_more_reasons_than_fit_a_line(tmp_path):
    source = opened(tmp_path, *sample("a", 0), *((f"a.{k:03d}.txt", b"x") for k in range(500)))
    assert sum(source.left_out.counts.values()) == 500
    assert len(source.left_out.counts) <= 33
    assert source.left_out.counts["other"] == 468


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([*sample("a", 0), ("a.jpg", b"y")], "a.jpg: twice in its sample"),
        ([*sample("a", 0), ("a.JPG", b"y")], "a.JPG: twice in its sample"),
        ([*sample("a", 0), ("a.cls", b"1")], "a.cls: twice in its sample"),
        ([*sample("a", 0), ("a.png", b"m")], "a.png: a second image in its sample, beside a.jpg"),
        ([("a.png", b"m"), *sample("a", 0)], "a.jpg: a second image in its sample, beside a.png"),
        ([("a.jpg", b"x"), *sample("b", 0), ("a.cls", b"0")], "a.jpg: no label; expected a .cls"),
        ([("a.jpg", b"x"), ("a.cls", b" \n")], "a.jpg: no label; expected a .cls"),
        ([("a.jpg", b"x"), ("a.json", b'{"width": 3}')], "a.jpg: no label"),
        ([("a.jpg", b"x"), ("a.json", b"[1]")], "a.jpg: no label"),
    ],
)
def test_samples_that_can_be_read_in_two_ways_are_refused(tmp_path, files: Files, problem):
    with pytest.raises(DataError) as error:
        opened(tmp_path, *sample("0", 0), *files)
    assert str(error.value).startswith(f"{tmp_path}/s.tar: {problem}")


@pytest.mark.parametrize("names", [("v1.0", "v1.1"), ("x.y.a", "x.z.b"), ("d/v1.0", "d/v2.0")])
def test_dots_in_keys_are_counted_over_all_shards_and_refused(tmp_path, names):
    make(tmp_path / "0.tar", *sample("good", 0), *sample(names[0], 1))
    make(tmp_path / "1.tar", *sample(names[1], 1))
    with pytest.raises(DataError) as error:
        TarShards(str(tmp_path), "data.train")
    assert str(error.value) == (
        f"{tmp_path}/0.tar, …: 2 images are in no sample, first {names[0]}.jpg: the key of a sample "
        "ends at the first dot of the file's name; rename them"
    )


DEEP = b'{"label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ({"cls": b"1", "json": b'{"label": 2}'}, "a.json: label 2, but 1 in a.cls"),
        ({"cls": b"cat", "json": b'{"class": "dog"}'}, "a.json: label 'dog', but 'cat' in a.cls"),
        ({"json": b'{"label": 1, "cls": 2}'}, "a.json: different class numbers in cls and label"),
        (
            {"json": b'{"label": "cat", "class": "animal"}'},
            "a.json: different class names in label",
        ),
        ({"json": b'{"label": "2", "cls": 1}'}, "a.json: different class numbers in cls and label"),
        ({"json": b'{"label": " ", "class": ""}'}, "a.jpg: no label; expected a .cls"),
        ({"json": b'{"label": 1, "x": 0, "label": 2}'}, "a.json: label is there twice"),
        ({"cls": b"caf\xe9"}, "a.cls: not UTF-8 at byte 3"),
        ({"cls": "3".encode("utf-16")}, "a.cls: not UTF-8 at byte 0"),
        ({"cls": b"1\n2"}, "a.cls: expected one class number or name, found '1\\n2'"),
        ({"cls": b"\x01\x00\x00\x00"}, "a.cls: expected one class number or name"),
        ({"cls": b"1" + b"0" * 30}, "a.cls: a class number of 31 digits"),
        ({"cls": b"7" * 3000}, "a.cls: a class number of 3000 digits"),
        ({"cls": b"7" * 5000}, "a.cls: 5,000 bytes; expected 4,096 at most for a label"),
        ({"cls": b"x" * 100_000}, "a.cls: 100,000 bytes; expected 4,096"),
        ({"json": b'{"a": "' + b"x" * (4 << 20) + b'"}'}, "a.json: 4,194,313 bytes; expected"),
        ({"json": b'{"label": 1' + b"0" * 30 + b"}"}, "a.json: label is 1e+30; expected a class"),
        ({"json": b'{"label": ' + b"7" * 5000 + b"}"}, "a.json: label is inf; expected a class"),
        ({"json": b'{"label": 1.5}'}, "a.json: label is 1.5; expected a class number or name"),
        ({"json": b'{"label": true}'}, "a.json: label is True; expected a class number or name"),
        ({"json": b'{"label": [1, 2]}'}, "a.json: label is a list; expected a class"),
        ({"json": b'{"label": "\\ud800"}'}, "a.json: expected one class number or name"),
        ({"json": b'{"label": 1'}, "a.json: not JSON"),
        ({"cls": b"1", "json": b"nothing"}, "a.json: not JSON"),
        ({"json": b"\xff\xfe\xff"}, "a.json: not JSON"),
        ({"json": DEEP}, "a.json: nested too deeply"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(tmp_path, label, problem):
    with pytest.raises(DataError) as error:
        opened(tmp_path, ("a.jpg", b"x"), *((f"a.{kind}", text) for kind, text in label.items()))
    assert str(error.value).startswith(f"{tmp_path}/s.tar: {problem}")
    assert len(str(error.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    "label",
    [
        {"cls": b"1\n", "json": b'{"label": 1, "class": "dog"}'},
        {"cls": b"1", "json": b'{"label": "1"}'},
        {"cls": b"01", "json": b'{"width": 3}'},
        {"cls": b"\xef\xbb\xbf1"},
        {"json": b'{"cls": null, "label": 1}'},
        {"json": b'\xef\xbb\xbf{"label": 1}'},
        {"json": b'{"label": " 1 ", "cls": 1, "class": "dog"}'},
    ],
)
def test_labels_that_agree(tmp_path, label):
    files = [(f"a.{kind}", text) for kind, text in label.items()]
    source = opened(tmp_path, *sample("0", 0), ("a.jpg", b"x"), *files)
    assert source.labels.tolist() == [0, 1]
    assert not source.left_out


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (("cat", 1), "class numbers (1) and names ('cat') side by side"),
        ((0, "0 1"), "class numbers (0) and names ('0 1') side by side"),
        (("0.0", "1.0"), "labels are numbers with a fraction (0.0)"),
        (("caf\u00e9", "cafe\u0301"), "classes whose names differ in their Unicode form only"),
    ],
)
def test_labels_of_two_kinds_are_refused(tmp_path, labels, problem):
    make(tmp_path / "s.tar", *sample("a", labels[0]), *sample("b", labels[1]))
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/s.tar: {problem}")):
        open_source(str(tmp_path / "s.tar"), "data.train")


def test_class_names_are_known_in_both_unicode_forms(tmp_path):
    (tmp_path / "classes.txt").write_text("caf\u00e9\n1\n", encoding="utf-8")
    source = opened(tmp_path, *sample("a", "cafe\u0301"), *sample("b", 1))
    assert (source.classes, source.labels.tolist()) == (["caf\u00e9", "1"], [0, 1])


@pytest.mark.parametrize("number", [10**6, 10**9, 10**17])
def test_class_numbers_that_leave_most_unused_are_refused(tmp_path, number):
    with pytest.raises(DataError) as error:
        opened(tmp_path, *sample("a", 0), *sample("b", number))
    assert str(error.value) == (
        f"data.train: {tmp_path}/s.tar: class numbers up to {number}, of which 2 are used; "
        "expected numbers from 0 with few gaps, or names"
    )


def test_class_numbers_may_have_gaps(tmp_path):
    assert len(opened(tmp_path, *sample("a", 0), *sample("b", 999)).classes) == 1000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("café\n".encode("latin-1"), ": not UTF-8 at byte 3: save it as UTF-8"),
        ("cat\ndog\n".encode("utf-16"), ": not UTF-8 at byte 0: save it as UTF-8"),
        (b"cat\n\ndog\n", ":2: empty; expected a class name"),
        (b"cat\ndog\ncat\n", ":3: 'cat' is on line 1 too"),
        (b"", ":1: empty; expected a class name"),
        (b"cat\0\n", ":1: NUL; expected a class name"),
        (
            b"0 cat\n1 dog\n",
            ": every line has a number (0 cat); expected names only, that of class 0 first",
        ),
        (
            b"2,cat\n1,dog\n",
            ": every line has a number (2,cat); expected names only, that of class 0 first",
        ),
        (
            b"cat 1\ndog 0\n",
            ": every line has a number (cat 1); expected names only, that of class 0 first",
        ),
    ],
)
def test_class_names_that_cannot_be_used_are_refused(tmp_path, content, problem):
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(DataError) as error:
        opened(tmp_path, *sample("a", 0))
    assert str(error.value) == f"{tmp_path}/classes.txt{problem}"


@pytest.mark.parametrize(
    "content", [b"cat\ndog", b"\xef\xbb\xbfcat\r\ndog\r\n\r\n", b"cat \ndog\n\n"]
)
def test_class_names_of_all_line_ends(tmp_path, content):
    (tmp_path / "classes.txt").write_bytes(content)
    source = opened(tmp_path, *sample("a", 1), *sample("b", 0))
    assert source.classes == ["cat", "dog"]
    assert [label for _image, label in contents(source)] == ["dog", "cat"]


@pytest.mark.parametrize(
    "content",
    [
        "grade 0\ngrade 1\n",
        "grade 1\ngrade 10\ngrade 11\n",
        "a 1\na 3\na 2\n",
        "10\n9\n",
        "1 euro\n2 euro\n5 euro\n",
    ],
)
def test_class_names_may_have_numbers(tmp_path, content):
    (tmp_path / "classes.txt").write_text(content)
    assert opened(tmp_path, *sample("a", 0)).classes == content.splitlines()


def test_a_json_with_a_label_is_read_whatever_its_length(tmp_path):
    note = json.dumps({"boxes": [[1, 2, 3, 4]] * 20_000, "label": 2}).encode()
    assert opened(tmp_path, ("a.jpg", b"x"), ("a.json", note)).labels.tolist() == [2]
