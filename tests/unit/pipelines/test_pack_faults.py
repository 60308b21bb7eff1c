"""Packing survives kills, detects damage, and leaves other files alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.errors import DataError, ResourceError
from pipelines.commands.pack import pack
from pipelines.commands.pack_folder import PackingFolder
from pipelines.commands.pack_options import PackOptions
from pipelines.commands.stage import stage
from pipelines.sources import ImageFolder, open_source
from tests.unit.pipelines.pack_samples import TWO, contents
from tests.unit.pipelines.samples import CLASSES, COUNT, photograph


def test_packing_continues_after_a_kill_with_the_same_result(folder, packed, tmp_path):
    program = (
        "import os, signal, sys\n"
        "from pipelines.commands.pack import pack\n"
        "from pipelines.commands.pack_options import PackOptions\n"
        "def progress(done, _all):\n"
        "    if done >= 10:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "options = PackOptions((None, 48, 32), shard_images=4)\n"
        "pack(sys.argv[1], sys.argv[2], options, progress)\n"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "p")]
    assert subprocess.run(command).returncode == -9
    left = contents(tmp_path / "p")
    assert "dataset.json" not in left
    assert {name for name in left if name.startswith(".parts/")} == {
        ".parts/00000.npz",
        ".parts/00001.npz",
    }
    with pytest.raises(DataError):
        open_source(str(tmp_path / "p"), "data.train")
    kept = (tmp_path / "p/32/00000.tar").stat().st_mtime_ns
    seen: list[int] = []
    pack(str(folder), str(tmp_path / "p"), TWO, lambda done, _all: seen.append(done))
    assert seen[0] == 8
    assert (tmp_path / "p/32/00000.tar").stat().st_mtime_ns == kept
    assert contents(tmp_path / "p") == contents(packed)


def test_a_second_call_finds_nothing_to_do(folder, packed):
    before = {f: f.stat().st_mtime_ns for f in packed.rglob("*.*")}
    pack(str(folder), str(packed), TWO, lambda *_: pytest.fail("worked"))
    assert {f: f.stat().st_mtime_ns for f in packed.rglob("*.*")} == before


def bad_folder(root: Path) -> Path:
    """Three good images, and two bad ones."""
    (root / "a").mkdir(parents=True)
    for k in range(3):
        photograph(k, 40, 40).save(root / f"a/{k}.jpg")
    (root / "a/text.jpg").write_text("no image")
    content = bytearray((root / "a/0.jpg").read_bytes())
    content[content.index(b"\xff\xc4") + 4] = 0xFF  # an impossible Huffman table
    (root / "a/table.jpg").write_bytes(content)
    return root


def test_bad_images_end_packing_with_their_list_unless_they_are_skipped(tmp_path):
    src, dst = bad_folder(tmp_path / "src"), tmp_path / "dst"
    before = contents(src)
    with pytest.raises(DataError) as error:
        pack(str(src), str(dst), PackOptions((None, 32), shard_images=2))
    head, *lines = str(error.value).split("\n")
    assert head.startswith("SRC: 2 of 5 images cannot be decoded, all listed in ")
    assert [line.split(":")[0] for line in lines] == ["a/table.jpg", "a/text.jpg"]
    assert lines[1] == "a/text.jpg: not an image"
    assert (dst / "bad.txt").read_text().splitlines() == lines
    report = pack(str(src), str(dst), PackOptions((None, 32), shard_images=2, skip_bad=True))
    assert [bad.name for bad in report.skipped] == ["a/table.jpg", "a/text.jpg"]
    source = open_source(str(dst), "data.train")
    assert [source.name(i)[-7:] for i in range(len(source))] == ["a/0.jpg", "a/1.jpg", "a/2.jpg"]
    assert [source.at(32).read(i).tobytes()[:2] for i in range(3)] == [b"\xff\xd8"] * 3
    assert not (dst / "bad.txt").exists()
    assert contents(src) == before


def test_bad_images_that_were_repaired_are_packed(tmp_path):
    src, dst = bad_folder(tmp_path / "src"), tmp_path / "dst"
    with pytest.raises(DataError):
        pack(str(src), str(dst), PackOptions(shard_images=2))
    for name in ("text", "table"):
        shutil.copy(src / "a/1.jpg", src / f"a/{name}.jpg")
    assert pack(str(src), str(dst), PackOptions(shard_images=2)).images == 5


@pytest.mark.parametrize("copy", ["orig", "32"])
def test_a_flipped_byte_is_caught_and_named(packed, tmp_path, copy):
    root = shutil.copytree(packed, tmp_path / "p")
    shard = root / copy / "00002.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1  # in the first image of the shard
    shard.write_bytes(content)
    source = open_source(str(root / copy), "data.train")
    bad = 8
    for i in range(len(source)):
        if i == bad:
            with pytest.raises(DataError) as error:
                source.read(i)
            assert str(error.value).endswith(f"{shard}: damaged: its checksum differs")
            assert CLASSES[1] in str(error.value)
        else:
            source.read(i)


@pytest.mark.parametrize("file", ["orig/00001.tar", "index.npz"])
def test_a_file_of_another_length_is_refused_at_once(packed, tmp_path, file):
    root = shutil.copytree(packed, tmp_path / "p")
    with (root / file).open("ab") as end:
        end.write(b"x")
    with pytest.raises(DataError, match=f"data.train: {root}: {root}/{file}: .* it is damaged"):
        open_source(str(root), "data.train").read(0)
    (root / file).unlink()
    with pytest.raises(DataError, match=f"{file}: No such file"):
        open_source(str(root), "data.train").read(0)


def test_a_damaged_index_is_reported(packed, tmp_path):
    root = shutil.copytree(packed, tmp_path / "p")
    content = bytearray((root / "index.npz").read_bytes())
    content[content.index(b"label.npy") + 200] ^= 1
    (root / "index.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"index\.npz: damaged"):
        open_source(str(root), "data.train")


def _without(name):
    return lambda d: d.pop(name)


@pytest.mark.parametrize(
    "spoil",
    [
        *map(_without, ("classes", "copies", "files", "fingerprint", "images", "skipped")),
        lambda d: d["files"].pop("index.npz"),
        lambda d: d["files"].pop("32/00001.tar"),
        lambda d: [d["files"].pop(name) for name in list(d["files"]) if name.startswith("orig/")],
        lambda d: d["files"]["index.npz"].pop("size"),
        lambda d: d["files"]["32/00000.tar"].update(crc32="7"),
        lambda d: d["copies"].update({"32": 32}),
        lambda d: d["copies"].clear(),
        lambda d: d["classes"].append(3),
        lambda d: d["classes"].clear(),
        lambda d: d.update(format=[1]),
    ],
)
def test_a_damaged_description_is_reported_in_one_line(packed, tmp_path, spoil):
    root = shutil.copytree(packed, tmp_path / "p")
    description = json.loads((root / "dataset.json").read_bytes())
    spoil(description)
    (root / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"(dataset\.json|index\.npz): (damaged|format)"):
        open_source(str(root), "data.train").at(32).read(0)
    if not isinstance(description["format"], int):
        with pytest.raises(DataError, match=r"dataset\.json: format"):
            stage(str(root), str(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("label", lambda a: a[:-1]),
        ("label", lambda a: a + 1000),
        ("label", lambda a: a.astype(float)),
        ("shard_starts", lambda a: a[::-1].copy()),
        ("shard_starts", lambda a: a[:1]),
        ("orig.offset", lambda a: a[:3]),
        ("orig.size", lambda a: a.astype(str)),
        ("name_ends", lambda a: a.reshape(-1, 1)),
    ],
)
def test_an_index_whose_parts_do_not_fit_is_reported(packed, tmp_path, name, spoil):
    root = shutil.copytree(packed, tmp_path / "p")
    with np.load(root / "index.npz") as arrays:
        columns = {key: arrays[key] for key in arrays}
    np.savez(root / "index.npz", **{**columns, name: spoil(columns[name])})
    description = json.loads((root / "dataset.json").read_bytes())
    description["files"]["index.npz"]["size"] = (root / "index.npz").stat().st_size
    (root / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"index\.npz: damaged \(its parts do not fit together\)"):
        _first(root)


def _first(root: Path) -> tuple[np.ndarray, str]:
    source = open_source(str(root), "data.train")
    return source.read(0), source.name(0)


def test_packing_goes_on_after_a_record_was_damaged(folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pack(str(folder), str(tmp_path / "p"), TWO, _interrupt)
    record = next((tmp_path / "p/.parts").glob("*.npz"))
    record.write_bytes(record.read_bytes()[:100])
    pack(str(folder), str(tmp_path / "p"), TWO)
    source = open_source(str(tmp_path / "p"), "data.train")
    assert all(len(source.read(i)) for i in range(len(source)))


def _interrupt(done: int, _all: int) -> None:
    if done >= 10:
        raise KeyboardInterrupt


@pytest.mark.parametrize("content", [b"{", b"[1]", b"7", b"\xff"])
def test_damaged_settings_of_a_half_packed_folder(folder, tmp_path, content):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/.packing.json").write_bytes(content)
    with pytest.raises(DataError, match=r"\.packing\.json: damaged .*name another folder"):
        pack(str(folder), str(tmp_path / "p"), TWO)


@pytest.mark.parametrize("where", ["src", "src/below", "src/a"])
def test_the_source_is_never_packed_into(tmp_path, where):
    (tmp_path / "src/a").mkdir(parents=True)
    photograph(0, 20, 20).save(tmp_path / "src/a/0.jpg")
    before = contents(tmp_path / "src")
    with pytest.raises(DataError, match=r"DST: .*: lies in SRC, which is only read"):
        pack(str(tmp_path / "src"), str(tmp_path / where), PackOptions())
    assert contents(tmp_path / "src") == before
    assert sorted(p.name for p in (tmp_path / "src").iterdir()) == ["a"]


def test_a_class_that_does_not_fit_a_line_is_refused(tmp_path):
    for name in ("a\nb", "c"):
        (tmp_path / "src" / name).mkdir(parents=True)
        photograph(0, 24, 32).save(tmp_path / "src" / name / "0.jpg")
    with pytest.raises(
        DataError, match=r"classes with a line break in their names.*: a\\nb; rename"
    ):
        pack(str(tmp_path / "src"), str(tmp_path / "dst"), TWO)
    assert not (tmp_path / "dst").exists()


def test_a_folder_with_something_else_is_left_alone(folder, tmp_path):
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst/thesis.tex").write_text("x")
    with pytest.raises(DataError, match="holds something else; name an empty or new folder"):
        pack(str(folder), str(tmp_path / "dst"), PackOptions())
    with pytest.raises(DataError, match="a file, not a folder"):
        pack(str(folder), str(tmp_path / "dst/thesis.tex"), PackOptions())
    assert contents(tmp_path / "dst") == {"thesis.tex": b"x"}


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        (PackOptions((None, 32), shard_images=4), "copies"),
        (PackOptions((None, 48, 32), quality=80, shard_images=9), "quality, shard_images"),
    ],
)
def test_other_settings_need_another_folder(folder, packed, options, differing):
    with pytest.raises(DataError, match=f"was packed with another {differing}; name another"):
        pack(str(folder), str(packed), options)


def test_two_processes_at_once_are_refused(folder, tmp_path):
    source = ImageFolder(str(folder), "SRC")
    args = (str(folder), str(tmp_path / "p"))
    refused = pytest.raises(DataError, match="another process is packing into it")
    with PackingFolder(*args, source, PackOptions()), refused:
        pack(*args, PackOptions())
    assert pack(*args, PackOptions()).images == COUNT


def test_a_full_disk_is_reported(folder, tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="cannot be written: No space left on device"):
        pack(str(folder), str(tmp_path / "p"), PackOptions())
    monkeypatch.undo()
    assert pack(str(folder), str(tmp_path / "p"), PackOptions()).images == COUNT
