"""Packing: nothing is lost or changed, and copies are what was asked for."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from hvdtrain.errors import DataError
from pipelines.commands.pack import pack
from pipelines.commands.pack_options import PackOptions, parse_short_sides
from pipelines.sources import ImageFolder, open_source
from tests.unit.pipelines.pack_samples import contents
from tests.unit.pipelines.samples import CLASSES, COUNT, Epoch, photograph


def test_names_labels_and_bytes_are_those_of_the_folder(folder, packed):
    source, copy = ImageFolder(str(folder), "data.train"), open_source(str(packed), "data.train")
    assert len(copy) == len(source) == COUNT
    assert copy.classes == source.classes
    assert copy.labels.tolist() == source.labels.tolist()
    for i in range(COUNT):
        assert copy.read(i).tobytes() == source.read(i).tobytes()
        assert copy.name(i).removeprefix(f"{packed}:") == source.name(i).removeprefix(f"{folder}/")


def test_the_folder_holds_these_files_and_nothing_else(packed):
    tars = {f"{copy}/{k:05d}.tar" for copy in ("orig", "48", "32") for k in range(6)}
    assert contents(packed).keys() == tars | {"dataset.json", "index.npz", "classes.txt"}
    assert (packed / "classes.txt").read_text().split() == list(CLASSES)
    description = json.loads((packed / "dataset.json").read_text())
    assert description["images"] == COUNT
    assert description["skipped"] == []


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
    """Pixels [H, W, 3] as a copy has them: chroma loses much in pictures this small."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=PackOptions().quality)
    with Image.open(file) as decoded:
        return np.asarray(decoded, dtype=float)


def test_the_smallest_copy_that_is_large_enough_is_read(packed):
    source = open_source(str(packed), "data.train")
    expected = {1: "32", 32: "32", 33: "48", 48: "48", 49: "orig", 4000: "orig", None: "orig"}
    assert {side: source.at(side).copy for side in expected} == expected
    assert source.at(32).fingerprint == source.at(48).fingerprint == source.fingerprint


def test_one_copy_can_be_opened_by_itself(packed):
    source = open_source(str(packed / "32"), "data.train")
    assert source.at(4000).copy == "32"
    assert source.read(0).tobytes() == open_source(str(packed), "x").at(32).read(0).tobytes()


def test_without_originals_the_largest_copy_is_read(folder, tmp_path):
    pack(str(folder), str(tmp_path / "p"), PackOptions((32, 48)))
    assert open_source(str(tmp_path / "p"), "data.train").at(4000).copy == "48"


@pytest.mark.parametrize("copy", [32, 48])
def test_loaders_read_packed_copies(make_loaders, folder, packed, copy):
    """Crops of 24 px need a copy of 27 px: the one of 32 is read. Crops of 38 need 43."""
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
    report = pack(str(tmp_path / "src"), str(tmp_path / "dst"), PackOptions((None, 32)))
    assert report.images == 7
    source = open_source(str(tmp_path / "dst"), "x")
    for i in range(7):
        with Image.open(io.BytesIO(source.at(32).read(i))) as small:
            name = source.name(i)
            assert (small.format, small.mode) == ("JPEG", "RGB"), name
            assert small.size == ((32, 53) if "turned" in name else (53, 32)), name
            assert 0x0112 not in small.getexif()
    assert source.column("height").tolist()[-1] == 100


def test_extensions_in_shards_follow_the_content(tmp_path):
    (tmp_path / "src/a").mkdir(parents=True)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"):
        photograph(1, 20, 20).save(tmp_path / f"src/a/{kind}.jpeg", format=kind)
    pack(str(tmp_path / "src"), str(tmp_path / "dst"), PackOptions())
    content = (tmp_path / "dst/orig/00000.tar").read_bytes()
    for k, kind in enumerate(["bmp", "jpg", "png", "ppm", "tif", "webp"]):
        assert f"{k:09d}.{kind}\0".encode() in content


@pytest.mark.parametrize("text", ["", "160,", "7", "orig,orig", "-160", "1e3", "big"])
def test_wrong_sizes_are_refused(text):
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
