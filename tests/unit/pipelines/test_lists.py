"""Lists of images: read as they are meant, or refused with the line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvdtrain.config.data import Columns
from hvdtrain.errors import DataError
from pipelines.sources import open_source
from pipelines.sources.table import MAX_LINE
from tests.unit.pipelines.samples import tree

ALL = ("0.jpg", "1.jpg", "2.jpg")


@pytest.fixture
def root(tmp_path) -> Path:
    return tree(tmp_path, *ALL)


def listed(file: Path, text: str | bytes, columns: Columns | None = None) -> list[tuple[str, str]]:
    """Name below the folder and class of every sample of the list `text`."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    source = open_source(str(file), "data.train", columns=columns)
    names = (os.path.relpath(source.name(i), file.parent) for i in range(len(source)))
    classes = (source.classes[label] for label in source.labels)
    return list(zip(names, classes, strict=True))


def refusal(file: Path, text: str | bytes, columns: Columns | None = None) -> str:
    with pytest.raises(DataError) as error:
        listed(file, text, columns)
    message = str(error.value)
    assert "\n" not in message
    assert message.isprintable()
    return message


DOG_CAT = [("0.jpg", "dog"), ("1.jpg", "cat")]


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".txt", ".CSV"])
@pytest.mark.parametrize("separator", [",", ";", "\t", ", "])
@pytest.mark.parametrize("header", ["", "path{}label\n"])
def test_the_separator_is_recognised(root, kind, separator, header):
    text = header.format(separator) + f"0.jpg{separator}dog\n1.jpg{separator}cat\n"
    assert listed(root / f"l{kind}", text) == DOG_CAT


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfpath,label\n0.jpg,dog\n1.jpg,cat\n",
        "\ufeffpath,label\n0.jpg,dog\n1.jpg,cat\n".encode("utf-16-le"),
        "\ufeff0.jpg;dog\r\n1.jpg;cat\r\n".encode("utf-16-be"),
        "0.jpg\tdog\n1.jpg\tcat\n".encode("utf-32"),
        b"path,label\r\n0.jpg,dog\r\n1.jpg,cat\r\n",
        b"path,label\r0.jpg,dog\r1.jpg,cat\r",
        b"sep=;\r\nfilename;class\r\n0.jpg;dog\r\n1.jpg;cat\r\n",
        b'"path","label"\n"0.jpg","dog"\n"1.jpg","cat"\n',
        b"\n0.jpg,dog\n\n,\n1.jpg,cat\n\n",
        b"path,label,,\n0.jpg,dog,,\n1.jpg,cat,,\n",
        b".\\0.jpg,dog\n.\\1.jpg,cat\n",
    ],
)
def test_encodings_and_line_ends(root, text):
    found = listed(root / "l.csv", text)
    assert [(os.path.normpath(name), label) for name, label in found] == DOG_CAT


@pytest.mark.parametrize(
    "header",
    [
        "path,label",
        "file,class",
        "file_name,label",
        "Filename,Class_Name",
        "image,category",
        "image_path,target",
        "id,breed",
        "image_id,label",
        "ImageId,species",
        "id,anything",
    ],
)
def test_headers_are_known_by_their_names(root, header):
    assert listed(root / "l.csv", f"{header}\n0.jpg,dog\n1.jpg,cat\n") == DOG_CAT
    turned = ",".join(reversed(header.split(",")))
    assert listed(root / "l.csv", f"{turned}\ndog,0.jpg\ncat,1.jpg\n") == DOG_CAT


@pytest.mark.parametrize(
    "text",
    [
        "filename,width,height,class,xmin\n0.jpg,640,480,dog,1\n1.jpg,641,480,cat,2\n",
        "index,path,label\n0,0.jpg,dog\n1,1.jpg,cat\n",
        "id,file_name,class_id,class_name\n7,0.jpg,1,dog\n8,1.jpg,0,cat\n",
        "a;label;path\n1;dog;0.jpg\n;cat;1.jpg\n",
    ],
)
def test_tables_with_more_columns(root, text):
    assert listed(root / "l.csv", text) == DOG_CAT


def test_columns_named_by_the_user(root):
    text = "photo,taken,what\n0.jpg,2024,dog\n1.jpg,2025,cat\n"
    assert listed(root / "l.csv", text, Columns(path="photo", label="what")) == DOG_CAT
    text = "path,label,Kind Of\n0.jpg,1,dog\n1.jpg,1,cat\n"
    assert listed(root / "l.csv", text, Columns(label="kind of")) == DOG_CAT
    text = "mine,id,label\n0.jpg,9,dog\n1.jpg,9,cat\n"
    assert listed(root / "l.csv", text, Columns(path="mine")) == DOG_CAT
    for columns, message in (
        (
            Columns(path="x", label="y"),
            "l.csv:1: data.columns.path: no column x; its columns are mine",
        ),
        (
            Columns(path="id", label="id"),
            "l.csv:1: data.columns: path and label are the same column",
        ),
        (Columns(label="z"), "data.columns.label: no column z"),
    ):
        assert message in refusal(root / "l.csv", text, columns)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.jpg,dog,1\n1.jpg,cat,2\n", "l.csv:1: 3 columns without a header"),
        ("path,label\n0.jpg,animal, dog\n", "l.csv:2: 3 cells, expected 2"),
        ("0.jpg,dog\n1.jpg,animal,cat\n", "l.csv:2: 3 cells, expected 2"),
        ("filename, cat, dog\n0.jpg, 0, 1\n1.jpg, 1, 0\n", "l.csv:1: columns filename, cat, dog: "),
        ("a,b,c\n0.jpg,1,2\n", "l.csv:1: columns a, b, c: which ones are path and label?"),
        ("path,class,label\n0.jpg,1,2\n", "several could be meant, class and label"),
        (
            "id,filename\n0,0.jpg\n",
            "l.csv:1: columns id, filename: none of them is known as the label",
        ),
        ("path,w,label\n0.jpg,dog\n", "l.csv:2: expected 3 cells with a path and a label"),
        ("0.jpg,dog\n1.jpg,\n", 'l.csv:2: expected "path,label", found "1.jpg,"'),
        ("0.jpg\n1.jpg\n", 'l.csv:1: expected "path,label", found "0.jpg"'),
        ("0.jpg dog\n1.jpg cat\n", 'l.csv:1: expected "path,label"'),
        ('0.jpg,"dog\n1.jpg,cat\n2.jpg,"cat\n', "is a quote"),
        ('0.jpg,"dog\n1.jpg,cat"\n', "l.csv:2: a cell that goes on over lines"),
        ("0.jpg,dog\n" + "x" * (MAX_LINE + 1) + ",cat\n", "l.csv:2: a line of more than 65,536"),
        ("0.jpg," + "9" * 5000 + "\n", "a label of 5,000 characters: 9999"),
        ("0.jpg,d\x1b[31mog\n", r"label d\x1b[31mog has a control character"),
        (b"0.jpg,caf\xe9\n", r"label caf\udce9 is not UTF-8; save the list as UTF-8"),
        (b"0.jpg,dog\n\0\0\0", "l.csv:2: not a text file (NUL bytes)"),
        ("0.jpg,dog\n".encode("utf-16-le"), "l.csv:1: not a text file (NUL bytes)"),
        (b"\xff\xfe0\0.", "damaged text; save it as UTF-8"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b"\xff\xd8\xff\xe0", "a single image: not a list of images"),
        ("", "lists no images"),
        ("path,label\n", "lists no images"),
    ],
)
def test_what_is_not_clear_is_refused_with_its_line(root, text, message):
    assert message in refusal(root / "l.csv", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.jpg dog\n1.jpg\n", 'l.txt:2: expected "path,label", found "1.jpg"'),
        ("0.jpg\n1.jpg\n", 'l.txt:1: expected "path,label", found "0.jpg"'),
        ("0.jpg golden retriever\n", "1 of 1 images are not there: 0.jpg golden"),
    ],
)
def test_words(root, text, message):
    assert message in refusal(root / "l.txt", text)


def test_paths_with_blanks_commas_quotes_and_backslashes(tmp_path):
    files = ["a b/c, d.jpg", 'say "x"/1.jpg', "back\\slash/1.jpg", "n/o.jpg"]
    tree(tmp_path, *files)
    assert listed(tmp_path / "l.txt", f"{files[0]} dog\nn/o.jpg cat\n")[0] == (files[0], "dog")
    text = f'"{files[0]}", dog\n"say ""x""/1.jpg",cat\n'
    assert [name for name, _ in listed(tmp_path / "l.csv", text)] == files[:2]
    assert listed(tmp_path / "l.csv", "back\\slash/1.jpg,a\n") == [("back\\slash/1.jpg", "a")]
    assert listed(tmp_path / "m.csv", "n\\o.jpg,a\n") == [("n/o.jpg", "a")]


def test_an_id_is_the_one_image_of_that_name(tmp_path):
    tree(tmp_path, "1.jpg", "1.txt", "im.2.png", "d/3.JPEG", "4.jpg", "4.png")
    text = "id,breed\n1,dog\nim.2,cat\nd/3,dog\n"
    assert listed(tmp_path / "l.csv", text) == [
        ("1.jpg", "dog"),
        ("im.2.png", "cat"),
        ("d/3.JPEG", "dog"),
    ]
    assert "4: several images have this name: 4.jpg, 4.png" in refusal(
        tmp_path / "l.csv", "id,breed\n1,dog\n4,cat\n"
    )


def test_unicode_forms_of_a_name(tmp_path):
    tree(tmp_path, "cafe\u0301.jpg")
    assert len(listed(tmp_path / "l.csv", "caf\u00e9.jpg,a\n")) == 1


def test_missing_images_are_counted_before_anything_is_read(root):
    text = "".join(f"{k}.jpg,x\n" for k in range(8))
    assert "data.train: " in refusal(root / "l.csv", text)
    assert "5 of 8 images are not there: 3.jpg, 4.jpg, 5.jpg, … (5 in all)" in refusal(
        root / "l.csv", text
    )
    assert "if it is the name of a column" in refusal(root / "l.csv", "photo,kind\n0.jpg,dog\n")


@pytest.mark.parametrize("name", ["folder.jpg", "pipe.jpg", "nowhere.jpg", "loop.jpg", "/dev/zero"])
def test_only_regular_files_are_images(root, name):
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    (root / "nowhere.jpg").symlink_to("none")
    (root / "loop.jpg").symlink_to("loop.jpg")
    message = refusal(root / "l.csv", f"0.jpg,a\n{name},b\n")
    assert f"1 of 2 images are not there: {name}" in message


def test_a_pipe_or_folder_is_no_list(root):
    os.mkfifo(root / "p.csv")
    with pytest.raises(DataError, match=r"p\.csv: a pipe or device"):
        open_source(str(root / "p.csv"), "data.train")
    (root / "d.csv").mkdir()
    with pytest.raises(DataError, match=r"d\.csv: no class folders in it"):
        open_source(str(root / "d.csv"), "data.train")


def test_a_file_that_becomes_a_pipe_is_not_waited_for(root):
    source = open_source(str(tree(root / "d", "a/1.jpg")), "data.train")
    (root / "d/a/1.jpg").unlink()
    os.mkfifo(root / "d/a/1.jpg")
    with pytest.raises(DataError, match=r"1\.jpg: cannot read: not a regular file"):
        source.read(0)
    (root / "d/a/1.jpg").unlink()
    with (root / "d/a/1.jpg").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"1\.jpg: cannot read: more than 1 GiB"):
        source.read(0)


def test_both_datasets_of_a_run_use_the_columns(root, make_loaders):
    for name in ("train.csv", "val.csv"):
        (root / name).write_text("photo,w,kind\n0.jpg,1,dog\n1.jpg,2,cat\n")
    loaders = make_loaders(
        root / "train.csv", root / "val.csv", columns={"path": "photo", "label": "kind"}
    )
    assert (loaders.num_train, loaders.num_val, loaders.classes) == (2, 2, ["cat", "dog"])


def test_a_decomposed_name_without_ending_is_the_composed_file(tmp_path):
    (tmp_path / "\u00e9.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "list.csv").write_text("path,label\ne\u0301,ant\n", encoding="utf-8")
    source = open_source(str(tmp_path / "list.csv"), "data.train")
    assert source.name(0) == str(tmp_path / "\u00e9.jpg")


@pytest.mark.parametrize("name", ["\u00e9", "e\u0301"])
def test_a_name_that_two_files_have_in_different_unicode_forms(tmp_path, name):
    tree(tmp_path, "\u00e9.jpg", "e\u0301.png")
    message = refusal(tmp_path / "l.csv", f"path,label\n{name},ant\n")
    assert f"{tmp_path}/{name}: several images have this name: " in message
    assert listed(tmp_path / "l.csv", f"path,label\n{name}.jpg,a\n{name}.png,b\n") == [
        ("\u00e9.jpg", "a"),
        ("e\u0301.png", "b"),
    ]


def test_a_txt_whose_first_label_stands_in_quotes(tmp_path):
    for name in ("a 1.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "l.txt").write_text('a 1.jpg\t"the ""q"""\nb.jpg\tant\n')
    source = open_source(str(tmp_path / "l.txt"), "data.train")
    assert [source.classes[label] for label in source.labels] == ['the "q"', "ant"]
    (tmp_path / "l.txt").write_text("a 1.jpg the\nb.jpg ant\n")
    source = open_source(str(tmp_path / "l.txt"), "data.train")
    assert [source.classes[label] for label in source.labels] == ["the", "ant"]
