"""What a dataset held, what has changed since, and files that change while they are read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.commands.pack import pack
from pipelines.inventory import file_sizes, has_files, known_sizes, take
from pipelines.sources import Source, open_source
from pipelines.sources.base import Names
from pipelines.sources.inventory import UNKNOWN, Inventory, compare
from pipelines.watched import Watched, watched
from tests.unit.pipelines.pack_samples import TWO
from tests.unit.pipelines.tar_samples import make, sample
from tests.unit.pipelines.test_classes import tree

FOUR = {"a/1.jpg": 10, "a/2.jpg": 20, "b/1.jpg": 30, "b/\u00e9.jpg": 40}


def inventory(files: dict[str, int]) -> Inventory:
    classes = sorted({name[0] for name in files})
    unknown = np.full(len(files), UNKNOWN, dtype=np.int64)
    labels = np.array([classes.index(name[0]) for name in files], dtype=np.int32)
    names = Names.of([os.fsencode(name) for name in files])
    return Inventory(classes, labels, names, np.array([*files.values()]), unknown)


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (FOUR, ""),
        ({**FOUR, "c/1.jpg": 1}, "1 added (c/1.jpg)"),
        ({"a/1.jpg": 10}, "3 gone (a/2.jpg, b/1.jpg, …)"),
        ({**FOUR, "a/2.jpg": 21}, "1 changed (a/2.jpg)"),
        ({**FOUR, "a/2.jpg": UNKNOWN}, ""),
        (dict(reversed(FOUR.items())), "the same images in another order"),
        (
            {"a/1.jpg": 11, "a/3\n.jpg": 1, "b/1.jpg": 30, "b/e\u0301.jpg": 40},
            "1 added (a/3\\n.jpg), 1 gone (a/2.jpg), 1 changed (a/1.jpg)",
        ),
    ],
)
def test_changes_are_counted_and_named(now, text):
    assert compare(inventory(FOUR), inventory(now)).text() == text


def test_another_label_or_checksum_is_a_change():
    before = inventory(FOUR)
    other = Inventory(**{**vars(before), "labels": np.array([0, 1, 1, 1])})
    assert compare(before, other).text() == "1 changed (a/2.jpg)"
    renamed = Inventory(**{**vars(before), "classes": ["a", "c"]})
    assert compare(before, renamed).text() == "2 changed (b/1.jpg, b/\u00e9.jpg)"
    crcs = [
        Inventory(**{**vars(before), "crc32": np.array(c)}) for c in ([1, 2, 3, 4], [1, 2, 3, 5])
    ]
    assert compare(*crcs).text() == "1 changed (b/\u00e9.jpg)"


def test_a_name_listed_twice_is_counted():
    once = inventory({"a/1.jpg": 1, "b/1.jpg": 1})
    names, columns = Names.of([b"a/1.jpg", b"a/1.jpg", b"b/1.jpg"]), np.zeros(3, dtype=np.int64)
    twice = Inventory(["a", "b"], np.array([0, 0, 1]), names, columns + 1, columns - 1)
    assert compare(once, twice).text() == "1 added (a/1.jpg)"
    assert compare(twice, once).text() == "1 gone (a/1.jpg)"


def test_an_inventory_is_stored_whole():
    before = inventory({**FOUR, "\udcff/1.jpg": 5})
    arrays = before.arrays("train")
    assert set(arrays) == set(Inventory.columns("train"))
    after = Inventory.of(arrays, "train")
    assert after.classes == before.classes
    assert compare(before, after).text() == ""
    assert [after.names[i] for i in range(5)] == [before.names[i] for i in range(5)]


def test_names_stay_when_a_dataset_moves(tmp_path):
    root = tree(tmp_path / "one", ant=2, bee=1)
    before = take(open_source(root, "data.train"), root)
    (tmp_path / "one").rename(tmp_path / "two")
    after = take(open_source(f"{tmp_path}/two/", "data.train"), f"{tmp_path}/two/")
    assert [after.names[i] for i in range(3)] == [b"ant/0.jpg", b"ant/1.jpg", b"bee/0.jpg"]
    assert compare(before, after).text() == ""


def test_names_are_the_same_from_every_folder(tmp_path, monkeypatch):
    tree(tmp_path / "t", ant=2, bee=1)
    (tmp_path / "list.csv").write_text("t/ant/0.jpg,ant\nt/bee/0.jpg,bee\n")
    image = (tmp_path / "t/ant/0.jpg").read_bytes()
    make(tmp_path / "a-0.tar", *sample("0", 0, image))
    expected = {
        "t": [b"ant/0.jpg", b"ant/1.jpg", b"bee/0.jpg"],
        "list.csv": [b"t/ant/0.jpg", b"t/bee/0.jpg"],
        "a-{0..0}.tar": [b"a-0.tar:0.jpg"],
    }
    for folder, begin in ((tmp_path, ""), (tmp_path, "./"), (tmp_path / "t", "../")):
        monkeypatch.chdir(folder)
        for path, names in expected.items():
            for place in (begin + path, f"{tmp_path}/{path}"):
                found = take(open_source(place, "data.train"), place).names
                assert [found[i] for i in range(len(found))] == names


def test_sizes_come_from_where_they_are_known(tmp_path):
    root = tree(tmp_path / "t", ant=2, bee=1)
    folder = open_source(root, "data.train")
    sizes = [len(folder.read(i)) for i in range(3)]
    assert has_files(folder)
    assert known_sizes(folder)[0].tolist() == [UNKNOWN] * 3
    for threads in (1, 3):
        assert file_sizes(folder, np.arange(3), threads).tolist() == sizes
    assert file_sizes(folder, np.arange(3), stop=lambda: True).tolist() == [UNKNOWN] * 3
    pack(root, tmp_path / "p", TWO)
    packed = open_source(str(tmp_path / "p"), "data.train")
    assert not has_files(packed)
    assert known_sizes(packed)[0].tolist() == [len(packed.read(i)) for i in range(3)]
    assert (known_sizes(packed)[1] > 0).all()


def later(path: Path) -> None:
    """Give a file another date, as if somebody had written it just now."""
    os.utime(path, ns=(time.time_ns(), time.time_ns()))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        later,
        lambda path: os.utime(path, ns=(0, 0)),
    ],
)
def test_a_file_that_changes_between_two_readings_is_named_once(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    source = watched(open_source(tree(tmp_path, ant=2), "data.train"))
    assert isinstance(source, Watched)
    for i in (0, 1, 1):
        source.read(i)
    assert source.take_changed() == []
    change(tmp_path / "ant/1.jpg")
    for i in (0, 1, 1):
        source.read(i)
    assert source.take_changed() == [f"{tmp_path}/ant/1.jpg"]
    source.read(1)
    assert source.take_changed() == []


def test_a_date_after_the_start_tells_what_this_process_has_not_read_before(tmp_path):
    root = tree(tmp_path, ant=3)
    os.utime(tmp_path / "ant/2.jpg", (4e9, 4e9))  # a wrong date, not a change
    source = watched(open_source(root, "data.train"))
    later(tmp_path / "ant/1.jpg")
    for i in range(3):
        source.read(i)
    assert source.take_changed() == [f"{tmp_path}/ant/1.jpg"]


def test_a_shard_is_watched_and_what_has_checksums_is_not(tmp_path):
    root = tree(tmp_path / "t", ant=2)
    image = (tmp_path / "t/ant/0.jpg").read_bytes()
    make(tmp_path / "s.tar", *sample("0", 0, image), *sample("1", 0, image))
    source: Source = watched(open_source(str(tmp_path / "s.tar"), "data.train"))
    assert isinstance(source, Watched)
    source.read(0)
    os.utime(tmp_path / "s.tar", ns=(1, 1))
    source.read(1)
    assert source.take_changed() == [f"{tmp_path}/s.tar"]
    pack(root, tmp_path / "p", TWO)
    assert not isinstance(watched(open_source(str(tmp_path / "p"), "data.train")), Watched)
