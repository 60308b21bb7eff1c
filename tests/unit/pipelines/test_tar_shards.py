"""Tar shards are read as tar, the webdataset library and DALI read them."""

from __future__ import annotations

import io
import json
import os
import resource
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.errors import DataError
from pipelines.sources import open_source
from pipelines.sources.left_out import LeftOut
from pipelines.sources.shards import ShardReader
from pipelines.sources.tar import TarShards
from pipelines.sources.tar_links import members
from tests.unit.pipelines.tar_samples import contents, make, sample


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tar_lists(tmp_path, form):
    long = "/".join(["folder" * 8, "x" * 60, "y" * 40 + ".jpg"])
    awkward = [] if form == tarfile.USTAR_FORMAT else ["ü" * 90 + ".jpg", "z" * 300 + ".jpg"]
    names = ["a.jpg", "empty.cls", "d.e/f.g.png", long, *awkward]
    rng = np.random.default_rng(0)
    files = [
        (name, rng.bytes(0 if name == "empty.cls" else 700 * k)) for k, name in enumerate(names)
    ]
    path = make(tmp_path / "s.tar", *files, form=form)
    with tarfile.open(path) as archive:
        expected = [(m.name.encode(), m.offset_data, m.size) for m in archive]
    reader = ShardReader([str(path)])
    found = list(members(reader, 0, LeftOut()))
    assert [tuple(member[:3]) for member in found] == expected
    for member, (_name, content) in zip(found, files, strict=True):
        assert reader.read(0, member.offset, member.size).tobytes() == content
        assert content.startswith(member.head)


def test_folders_and_links_in_a_tar_file_are_ignored(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, kind in (("d", tarfile.DIRTYPE), ("d/l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere"
            archive.addfile(info)
        for name, content in sample("d/1", 0):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert contents(TarShards(str(tmp_path), "data.train")) == [(b"d/1", "0")]


def test_shards_of_a_folder_come_in_order_of_names(tmp_path):
    make(tmp_path / "b.tar", *sample("3", 1))
    make(tmp_path / "a.tar", *sample("2", 2), *sample("1", 0))
    source = open_source(str(tmp_path), "data.train")
    assert contents(source) == [(b"2", "2"), (b"1", "0"), (b"3", "1")]
    assert source.classes == ["0", "1", "2"]
    assert source.labels.dtype == np.int32
    assert source.name(2) == f"{tmp_path}/b.tar:3.jpg"


@pytest.mark.parametrize("pattern", ["s-{00..02}.tar", "s-{00,01,02}.tar", "s-0{0..2}.tar"])
def test_a_pattern_is_expanded(tmp_path, pattern):
    for k in range(4):
        make(tmp_path / f"s-{k:02d}.tar", *sample(f"{k}", k))
    source = open_source(str(tmp_path / pattern), "data.train")
    assert [image for image, _label in contents(source)] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("form", ["cls", "text", "json cls", "json label", "json class"])
def test_labels(tmp_path, form):
    kind, _, key = form.partition(" ")
    words = ["dog", "cat", "dog"] if kind == "text" else [1, 0, 1]
    files: list[tuple[str, bytes]] = []
    for k, word in enumerate(words):
        if kind == "json":
            note = json.dumps({"width": 7, "padding": "x" * 3000, key: word}).encode()
            files += [(f"{k}.json", note), (f"{k}.JPG", b"x")]
        else:
            files += sample(str(k), f"{word}\n")
    make(tmp_path / "s.tar", *files)
    if kind != "text":
        (tmp_path / "classes.txt").write_text("cat\ndog\neel\n")
    source = open_source(str(tmp_path / "s.tar"), "data.train")
    assert [source.classes[label] for label in source.labels] == ["dog", "cat", "dog"]
    assert source.classes == (["cat", "dog"] if kind == "text" else ["cat", "dog", "eel"])


def damage(path: Path, place: int, *, cut: bool) -> None:
    content = bytearray(path.read_bytes())
    if cut:
        del content[place:]
    else:
        content[place : place + 300] = b"\xff" * 300
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path: damage(path, 512, cut=True),
            "{}: at byte 0: cut short within '1.jpg': 0 of 1 bytes are there",
        ),
        (
            lambda path: damage(path, 1024, cut=False),
            "{}: at byte 1024: not a tar file, or damaged",
        ),
        (
            lambda path: path.write_text("no tar file at all" * 99),
            "{}: at byte 0: not a tar file, or damaged",
        ),
        (
            lambda path: make(path, ("1.txt", b"")),
            "data.train: {}: no images in the tar files; left out: .txt 1 (first: 1.txt)",
        ),
        (
            lambda path: make(path, ("1.jpg", b"x")),
            "{}: 1.jpg: no label; expected a .cls next to it, or a .json with one of cls, label, class",
        ),
        (lambda path: make(path, *sample("1", -1)), None),
        (lambda path: path.unlink(), "data.train: {}: no such file; expected tar shards"),
    ],
)
def test_what_cannot_be_used_is_reported_in_one_line(tmp_path, spoil, message):
    path = make(tmp_path / "s.tar", *sample("1", 0), *sample("2", 1))
    spoil(path)
    if message is None:
        assert TarShards(str(path), "data.train").classes == ["-1"]  # a name, not a number
        return
    with pytest.raises(DataError) as error:
        open_source(str(path), "data.train")
    assert str(error.value) == message.format(path)


def test_a_class_number_without_a_name(tmp_path):
    make(tmp_path / "s.tar", *sample("1", 2))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"class numbers 2 to 2; expected 0 to 1 \(classes.txt\)"):
        open_source(str(tmp_path), "data.train")


def test_a_shard_cut_after_it_was_opened_is_named(tmp_path):
    path = make(tmp_path / "s.tar", *sample("1", 0, b"x" * 5000))
    source = open_source(str(path), "data.train")
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DataError, match=r"s\.tar:1\.jpg: .*cut short: 5000 bytes expected"):
        source.read(0)


def test_more_shards_than_files_may_be_open(tmp_path):
    for k in range(40):
        make(tmp_path / f"{k:02d}.tar", *sample(f"{k:02d}", k))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, limits[1]))
        source = open_source(str(tmp_path), "data.train")
        assert [image for image, _label in contents(source)] == [b"%02d" % k for k in range(40)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def read_by_webdataset(paths: Iterable[Path]) -> list[tuple[bytes, int]]:
    webdataset = pytest.importorskip("webdataset")
    dataset = webdataset.WebDataset([str(p) for p in paths], shardshuffle=False).to_tuple(
        "jpg;png;ppm", "cls"
    )
    return [(image, int(label)) for image, label in dataset]


def read_by_dali(paths: Iterable[Path], count: int) -> list[tuple[bytes, int]]:
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(batch_size=count, num_threads=1, device_id=None)
    with pipeline:
        outputs = fn.readers.webdataset(
            paths=[str(path) for path in paths],
            ext=["jpg;png;ppm", "cls"],
            dtypes=[types.UINT8, types.UINT8],
            missing_component_behavior="error",
        )
        pipeline.set_outputs(*outputs)
    pipeline.build()
    images, labels = pipeline.run()
    return [
        (np.asarray(images[k]).tobytes(), int(np.asarray(labels[k]).tobytes()))
        for k in range(count)
    ]


def test_packed_shards_are_read_by_dali(tmp_path, folder):
    from pipelines.commands.pack import pack
    from pipelines.commands.pack_options import PackOptions

    pack(str(folder), str(tmp_path / "p"), PackOptions((None, 32), shard_images=8))
    source = open_source(str(tmp_path / "p"), "data.train")
    labels = source.labels.tolist()
    for copy, name in ((source.at(32), "32"), (source.at(None), "orig")):
        expected = [(copy.read(i).tobytes(), labels[i]) for i in range(len(source))]
        shards = sorted((tmp_path / "p" / name).glob("*.tar"))
        assert len(shards) == 3
        assert read_by_dali(shards, len(source)) == expected
        plain = TarShards(str(tmp_path / "p" / name), "data.train")  # without the index
        assert [
            (plain.read(i).tobytes(), int(plain.labels[i])) for i in range(len(plain))
        ] == expected


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves its files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_packed_shards_are_read_by_webdataset(tmp_path, folder):
    from pipelines.commands.pack import pack
    from pipelines.commands.pack_options import PackOptions

    pack(str(folder), str(tmp_path / "p"), PackOptions((None,), shard_images=8))
    source = open_source(str(tmp_path / "p"), "data.train")
    expected = [(source.read(i).tobytes(), int(source.labels[i])) for i in range(len(source))]
    assert read_by_webdataset(sorted((tmp_path / "p/orig").glob("*.tar"))) == expected
