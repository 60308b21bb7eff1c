"""CIFAR-10 in its published forms, with few images; nothing in its pickles is run."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.errors import DataError
from pipelines.sources import open_source
from tests.unit.pipelines.samples import Epoch

ROWS = 6
BATCHES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


def rows(name: str) -> tuple[np.ndarray, list[int]]:
    """Pixels [ROWS, 3072] and labels of a batch."""
    rng = np.random.default_rng(BATCHES.index(name))
    return rng.integers(0, 256, (ROWS, 3072), dtype=np.uint8), rng.integers(0, 10, ROWS).tolist()


def binary(name: str) -> bytes:
    pixels, labels = rows(name)
    return b"".join(
        bytes([label]) + row.tobytes() for label, row in zip(labels, pixels, strict=True)
    )


def text(value: str) -> bytes:
    """SHORT_BINSTRING, as Python 2 wrote it."""
    return b"U" + bytes([len(value)]) + value.encode()


def python2(name: str, extra: bytes = b"") -> bytes:
    """The opcodes of the published files: a dict of strings, lists of integers and one array."""
    pixels, labels = rows(name)
    raw = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text("b") + b"tR"
        b"(K\x01J" + struct.pack("<i", ROWS) + b"M\x00\x0c\x86cnumpy\ndtype\n"
        b"("
        + text("u1")
        + b"K\x00K\x01tR(K\x03"
        + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return (
        b"\x80\x02}q\x01("
        + text("data")
        + array
        + text("labels")
        + b"q\x02"
        + numbers
        + text("batch_label")
        + text("training batch 1 of 5")
        + extra
        + b"u."
    )


def python3(name: str) -> bytes:
    pixels, labels = rows(name)
    return pickle.dumps({b"labels": labels, b"data": pixels})


KINDS = {
    "binary": (binary, ".bin"),
    "python2": (python2, ""),
    "python3": (python3, ""),
}


def write(place: Path, kind: str, *, archive: bool) -> Path:
    make, ending = KINDS[kind]
    files = {f"{name}{ending}": make(name) for name in BATCHES}
    if not archive:
        place.mkdir()
        for name, content in files.items():
            (place / name).write_bytes(content)
        return place
    path = place.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("archive", [False, True])
def test_all_images_and_labels(tmp_path, kind, archive):
    path = write(tmp_path / "cifar", kind, archive=archive)
    train, val = open_source(str(path), "data.train"), open_source(str(path), "data.val")
    assert (len(train), len(val)) == (5 * ROWS, ROWS)
    for source, batches in ((train, BATCHES[:5]), (val, BATCHES[5:])):
        labels = [label for name in batches for label in rows(name)[1]]
        assert source.labels.tolist() == labels
        assert source.classes[3] == "cat"
        for k, name in enumerate(batches):
            planes = rows(name)[0].reshape(ROWS, 3, 32, 32).transpose(0, 2, 3, 1)
            for row in range(ROWS):
                encoded = source.read(k * ROWS + row).tobytes()
                assert encoded == b"P6\n32 32\n255\n" + planes[row].tobytes()
                assert source.name(k * ROWS + row) == f"{path}:{name}/{row:05d}"


def test_train_or_test_can_be_chosen_in_the_path(tmp_path):
    path = write(tmp_path / "cifar", "binary", archive=False)
    assert len(open_source(f"{path}:test", "data.train")) == ROWS
    assert len(open_source(f"{path}:train", "data.val")) == 5 * ROWS


def test_decoded_pixels_are_the_published_ones(tmp_path, make_loaders):
    path = write(tmp_path / "cifar", "binary", archive=False)
    levels = {"mean": [0.0] * 3, "std": [1 / 255] * 3, "augment": "none", "flip": False}
    loaders = make_loaders(path, **levels)
    epoch = Epoch(num_train=5 * ROWS, image_size=32, batch_per_worker=5)
    pixels = np.concatenate([rows(name)[0].reshape(ROWS, 3, 32, 32) for name in BATCHES[:5]])
    for _i, batch in loaders.train(epoch):
        assert np.abs(batch.images.numpy() - pixels[batch.indices]).max() < 1e-3


def test_nothing_in_a_pickle_is_run(tmp_path):
    trap = tmp_path / "sprung"
    path = write(tmp_path / "cifar", "python2", archive=False)
    call = b"cos\nsystem\n(" + text(f"touch {trap}") + b"tR" + text("x")
    (path / "data_batch_1").write_bytes(python2("data_batch_1", extra=call))
    assert len(open_source(str(path), "data.train")) == 5 * ROWS
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are no whole number of CIFAR-10 images"),
        (b"x" * 3072, "3072 bytes are no whole number of CIFAR-10 images"),
        (b"\x80\x02}.", "0 bytes of pixels for 0 labels"),
        (python2("data_batch_3")[:5000], "damaged: "),
        (b"\x0a" + b"\0" * 3072, "label 10; expected 0 to 9"),
    ],
)
def test_damaged_batches_are_named(tmp_path, content, message):
    path = write(tmp_path / "cifar", "binary", archive=False)
    (path / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(DataError) as error:
        open_source(str(path), "data.train")
    assert str(error.value).startswith(f"data.train: {path}: ")
    assert message in str(error.value)


def test_a_missing_batch(tmp_path):
    path = write(tmp_path / "cifar", "binary", archive=False)
    (path / "test_batch.bin").unlink()
    with pytest.raises(DataError, match="not CIFAR-10: no test_batch in it"):
        open_source(str(path), "data.val")


def test_other_archives_are_refused_without_unpacking_them(tmp_path):
    other = tmp_path / "other.tar.gz"
    other.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"other\.tar\.gz: at byte 0: cut short"):
        open_source(str(other), "data.val")
    with gzip.open(other, "wb") as file:
        file.write(b"x" * 5000)
    other.write_bytes(other.read_bytes()[:20])  # the rest is not needed to say what it is
    with pytest.raises(DataError, match=r"other\.tar\.gz: compressed by gzip; .* \(gunzip\)"):
        open_source(str(other), "data.val")


@pytest.mark.parametrize("ending", [".tar", ".dat", ".tar.xz", ".tbz2"])
def test_an_archive_is_known_by_its_content(tmp_path, ending):
    archive = write(tmp_path / "cifar", "binary", archive=True)
    plain = gzip.decompress(archive.read_bytes())
    pack = {".tar.xz": lzma.compress, ".tbz2": bz2.compress}.get(ending, bytes)
    renamed = tmp_path / f"renamed{ending}"
    renamed.write_bytes(pack(plain))
    assert len(open_source(f"{renamed}:test", "data.train")) == ROWS


@pytest.mark.parametrize("number", [10**30, -1, 10, 2**40])
def test_labels_that_are_no_class_of_cifar(tmp_path, number):
    path = write(tmp_path / "cifar", "binary", archive=False)
    batch = pickle.dumps({b"labels": [number] * ROWS, b"data": bytes(3072 * ROWS)})
    (path / "data_batch_2.bin").write_bytes(batch)
    with pytest.raises(DataError, match=r"data_batch_2: label .*; expected 0 to 9"):
        open_source(str(path), "data.train")


def test_a_file_much_larger_than_a_batch_is_not_read(tmp_path):
    path = write(tmp_path / "cifar", "binary", archive=False)
    with (path / "data_batch_4.bin").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"data_batch_4\.bin: 1,099,511,627,776 bytes; a batch"):
        open_source(str(path), "data.train")
