"""Packing: nothing is lost or changed, kills are survived, damage is caught."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvdtrain.errors import DataError, ResourceError
from pipelines import packing
from pipelines.pack import PackOptions, pack, parse_short_sides
from pipelines.sources import ImageFolder, open_source
from tests.unit.pipelines.samples import CLASSES, PER_CLASS, Epoch, photograph

COUNT = len(CLASSES) * PER_CLASS
TWO = PackOptions((None, 48, 32), shard_images=4, threads=2)


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory) -> Path:
    """`folder` with copies of 48 and 32 px."""
    path = tmp_path_factory.mktemp("packed") / "data"
    pack(str(folder), str(path), TWO)
    return path


def contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def test_names_labels_and_bytes_are_those_of_the_folder(folder, packed):
    source, copy = ImageFolder(str(folder), "data.train"), open_source(str(packed), "data.train")
    assert len(copy) == len(source) == COUNT
    assert copy.classes == source.classes
    assert copy.labels.tolist() == source.labels.tolist()
    for i in range(COUNT):
        assert copy.read(i).tobytes() == source.read(i).tobytes()
        assert copy.name(i).removeprefix(f"{packed}:") == source.name(i).removeprefix(f"{folder}/")


def test_what_is_in_the_folder_and_nothing_else(packed):
    tars = {f"{copy}/{k:05d}.tar" for copy in ("orig", "48", "32") for k in range(6)}
    assert contents(packed).keys() == tars | {"dataset.json", "index.npz", "classes.txt"}
    assert (packed / "classes.txt").read_text().split() == list(CLASSES)
    about = json.loads((packed / "dataset.json").read_text())
    assert about["images"] == COUNT
    assert about["skipped"] == []


@pytest.mark.parametrize("side", [48, 32])
def test_copies_are_shrunk_and_still_look_alike(folder, packed, side):
    source = open_source(str(packed), "data.train")
    originals = ImageFolder(str(folder), "data.train")
    for i in range(COUNT):
        with Image.open(io.BytesIO(originals.read(i))) as image:
            if min(image.size) <= side:
                assert source.at(side).read(i).tobytes() == originals.read(i).tobytes()
                continue
            with Image.open(io.BytesIO(source.at(side).read(i))) as small:
                scale = side / min(image.size)
                assert small.size == tuple(round(scale * k) for k in image.size)
                expected = through_jpeg(image.resize(small.size, Image.Resampling.BICUBIC))
                assert np.abs(np.asarray(small, dtype=float) - expected).mean() < 2


def through_jpeg(image: Image.Image) -> np.ndarray:
    """Pixels [H, W, 3] as a copy holds them; chroma loses much in pictures this small."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=PackOptions().quality)
    with Image.open(file) as decoded:
        return np.asarray(decoded, dtype=float)


def test_the_smallest_copy_that_is_large_enough_is_read(packed):
    source = open_source(str(packed), "data.train")
    wanted = {1: "32", 32: "32", 33: "48", 48: "48", 49: "orig", 4000: "orig", None: "orig"}
    assert {side: source.at(side).copy for side in wanted} == wanted
    assert source.at(32).fingerprint == source.at(48).fingerprint == source.fingerprint


def test_one_copy_can_be_opened_alone(packed):
    source = open_source(str(packed / "32"), "data.train")
    assert source.at(4000).copy == "32"
    assert source.read(0).tobytes() == open_source(str(packed), "x").at(32).read(0).tobytes()


def test_without_originals_the_largest_copy_is_the_best_there_is(folder, tmp_path):
    pack(str(folder), str(tmp_path / "p"), PackOptions((32, 48)))
    assert open_source(str(tmp_path / "p"), "data.train").at(4000).copy == "48"


@pytest.mark.parametrize("copy", [32, 48])
def test_loaders_read_packed_copies(make_loaders, folder, packed, copy):
    """Crops of 24 px need 27 px of a copy: that of 32 is read. Those of 38 need 43."""
    size = {32: 24, 48: 38}[copy]
    epoch = Epoch(image_size=size, val_image_size=size)
    mine = make_loaders(packed, packed)
    theirs = make_loaders(folder, folder)
    for ours, other in zip(mine.train(epoch), theirs.train(epoch), strict=True):
        assert ours[1].indices.tolist() == other[1].indices.tolist()
        assert ours[1].labels.tolist() == other[1].labels.tolist()
        assert (ours[1].images - other[1].images).abs().mean() < 0.15
    read = mine.bytes_read
    source = open_source(str(packed), "x").at(copy)
    once = sum(len(source.read(i)) for i in range(COUNT))
    assert once < read < once * 1.3  # and the padding of the last batch
    found = {i for batch in mine.val(epoch) for i in batch.indices.tolist()}
    assert found == set(range(COUNT))


def test_copies_are_upright_rgb_whatever_the_original_was(tmp_path):
    (tmp_path / "src/a").mkdir(parents=True)
    picture = photograph(0, 60, 100)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.save(tmp_path / "src/a/turned.jpg", exif=exif, quality=95)
    modes = {"RGBA": "png", "L": "png", "P": "png", "CMYK": "jpg", "LA": "png", "1": "png"}
    for mode, kind in modes.items():
        image = picture.convert("L").convert("1") if mode == "1" else picture.convert(mode)
        image.save(tmp_path / f"src/a/{mode}.{kind}")
    about = pack(str(tmp_path / "src"), str(tmp_path / "dst"), PackOptions((None, 32)))
    assert about["images"] == 7
    source = open_source(str(tmp_path / "dst"), "x")
    for i in range(7):
        with Image.open(io.BytesIO(source.at(32).read(i))) as small:
            name = source.name(i)
            assert (small.format, small.mode) == ("JPEG", "RGB"), name
            assert small.size == ((32, 53) if "turned" in name else (53, 32)), name
            assert 0x0112 not in small.getexif()
    assert source.column("height").tolist()[-1] == 100


def test_extensions_in_shards_go_by_content(tmp_path):
    (tmp_path / "src/a").mkdir(parents=True)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"):
        photograph(1, 20, 20).save(tmp_path / f"src/a/{kind}.jpeg", format=kind)
    pack(str(tmp_path / "src"), str(tmp_path / "dst"), PackOptions())
    content = (tmp_path / "dst/orig/00000.tar").read_bytes()
    for k, kind in enumerate(["bmp", "jpg", "png", "ppm", "tif", "webp"]):
        assert f"{k:09d}.{kind}\0".encode() in content


def test_it_goes_on_after_a_kill_and_makes_the_very_same(folder, packed, tmp_path):
    program = (
        "import os, signal, sys\n"
        "from pipelines.pack import PackOptions, pack\n"
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
    content[content.index(b"\xff\xc4") + 4] = 0xFF  # a Huffman table that cannot be
    (root / "a/table.jpg").write_bytes(content)
    return root


def test_bad_images_end_it_with_their_list_unless_they_are_left_out(tmp_path):
    src, dst = bad_folder(tmp_path / "src"), tmp_path / "dst"
    before = contents(src)
    with pytest.raises(DataError) as error:
        pack(str(src), str(dst), PackOptions((None, 32), shard_images=2))
    head, *lines = str(error.value).split("\n")
    assert head.startswith("SRC: 2 of 5 images cannot be decoded, all listed in ")
    assert [line.split(":")[0] for line in lines] == ["a/table.jpg", "a/text.jpg"]
    assert lines[1] == "a/text.jpg: not an image"
    assert (dst / "bad.txt").read_text().splitlines() == lines
    about = pack(str(src), str(dst), PackOptions((None, 32), shard_images=2, skip_bad=True))
    assert [bad["name"] for bad in about["skipped"]] == ["a/table.jpg", "a/text.jpg"]
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
    assert pack(str(src), str(dst), PackOptions(shard_images=2))["images"] == 5


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
            assert str(error.value).endswith(f"{shard}: damaged: its checksum is another")
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


def test_a_damaged_index_is_told(packed, tmp_path):
    root = shutil.copytree(packed, tmp_path / "p")
    content = bytearray((root / "index.npz").read_bytes())
    content[content.index(b"label.npy") + 200] ^= 1
    (root / "index.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"index\.npz: damaged"):
        open_source(str(root), "data.train")


@pytest.mark.parametrize("where", ["src", "src/below", "src/a"])
def test_the_source_is_never_packed_into(tmp_path, where):
    (tmp_path / "src/a").mkdir(parents=True)
    photograph(0, 20, 20).save(tmp_path / "src/a/0.jpg")
    before = contents(tmp_path / "src")
    with pytest.raises(DataError, match=r"DST: .*: lies in SRC, which is only read"):
        pack(str(tmp_path / "src"), str(tmp_path / where), PackOptions())
    assert contents(tmp_path / "src") == before
    assert sorted(p.name for p in (tmp_path / "src").iterdir()) == ["a"]


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
def test_other_settings_want_another_folder(folder, packed, options, differing):
    with pytest.raises(DataError, match=f"was packed with another {differing}; name another"):
        pack(str(folder), str(packed), options)


def test_two_at_once_are_refused(folder, tmp_path):
    source = ImageFolder(str(folder), "SRC")
    args = (str(folder), str(tmp_path / "p"))
    refused = pytest.raises(DataError, match="another process is packing into it")
    with packing.PackingFolder(*args, source, PackOptions()), refused:
        pack(*args, PackOptions())
    assert pack(*args, PackOptions())["images"] == COUNT


def test_a_full_disk_is_told(folder, tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.shard_writer.os.fsync", full)
    with pytest.raises(ResourceError, match="cannot be written: No space left on device"):
        pack(str(folder), str(tmp_path / "p"), PackOptions())
    monkeypatch.undo()
    assert pack(str(folder), str(tmp_path / "p"), PackOptions())["images"] == COUNT


@pytest.mark.parametrize("text", ["", "160,", "7", "orig,orig", "-160", "1e3", "big"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError):
        parse_short_sides(text)


def test_sizes():
    assert parse_short_sides("160, 256,orig") == (160, 256, None)


def test_shuffled_shards_hold_the_same_images_in_one_random_order(folder, tmp_path):
    source = ImageFolder(str(folder), "data.train")
    made = []
    for name in ("one", "two"):
        pack(str(folder), str(tmp_path / name), PackOptions(shard_images=4, shuffle=True))
        made.append(open_source(str(tmp_path / name), "data.train"))
    one, two = made
    assert one.fingerprint == two.fingerprint
    content = {source.read(i).tobytes(): int(source.labels[i]) for i in range(COUNT)}
    assert {one.read(i).tobytes(): int(one.labels[i]) for i in range(COUNT)} == content
    assert sorted(one.labels) != list(one.labels)
    with pytest.raises(DataError, match=r"other settings|another"):
        pack(str(folder), str(tmp_path / "one"), PackOptions(shard_images=4))
