"""Sizes read from headers are those DALI decodes, whatever the format and orientation."""

from __future__ import annotations

import io

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from pipelines.images.headers import image_size
from tests import bad_files
from tests.unit.pipelines.samples import photograph

FORMATS = {
    "jpeg": {"format": "JPEG"},
    "progressive": {"format": "JPEG", "progressive": True},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP"},
    "tiff": {"format": "TIFF"},
    "bmp": {"format": "BMP"},
    "ppm": {"format": "PPM"},
    "jp2": {"format": "JPEG2000"},
}


def encode(image: Image.Image, orientation: int | None = None, **options) -> np.ndarray:
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


@pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
def whole_image():
    return fn.decoders.image(fn.external_source(name="encoded", dtype=types.UINT8, ndim=1))


@pytest.mark.parametrize("kind", FORMATS)
def test_size_is_that_of_the_decoded_image(kind):
    decoder = whole_image()
    for orientation in (None, 1, 3, 5, 6, 7, 8):
        encoded = encode(photograph(0, 20, 30), orientation, **FORMATS[kind])
        decoded = decoder.run(encoded=[encoded])[0].at(0)
        assert image_size(encoded) == decoded.shape[:2], orientation


def test_orientation_after_the_pixels_of_a_png_counts():
    data = encode(photograph(0, 20, 30), 6, format="PNG").tobytes()
    begin = data.index(b"eXIf") - 4
    end = begin + 12 + int.from_bytes(data[begin : begin + 4], "big")
    tail = data.index(b"IEND") - 4
    moved = np.frombuffer(data[:begin] + data[end:tail] + data[begin:end] + data[tail:], np.uint8)
    assert image_size(moved) == whole_image().run(encoded=[moved])[0].at(0).shape[:2] == (30, 20)


def test_a_thumbnail_in_exif_is_not_mistaken_for_the_image():
    thumbnail = encode(photograph(0, 4, 5), format="JPEG").tobytes()
    picture = encode(photograph(0, 20, 30), format="JPEG").tobytes()
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\0" + thumbnail
    segment = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
    assert image_size(np.frombuffer(picture[:2] + segment + picture[2:], np.uint8)) == (20, 30)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"hello, world", "not an image"),
        (b"\xff\xd8", "truncated JPEG header"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(40), "damaged JPEG header"),
        (b"\xff\xd8\xff\xda" + bytes(40), "damaged JPEG: no frame header"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(17), "an image without pixels"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(data, reason):
    with pytest.raises(ValueError, match=reason):
        image_size(np.frombuffer(data, np.uint8))


def test_damage_anywhere_in_a_header_gives_a_size_or_a_reason():
    rng = np.random.default_rng(0)
    for options in FORMATS.values():
        encoded = encode(photograph(0, 20, 30), 6, **options)
        for _ in range(60):
            damaged = encoded[: rng.integers(1, len(encoded) + 1)].copy()
            damaged[rng.integers(0, min(60, len(damaged)))] ^= rng.integers(1, 256)
            try:
                height, width = image_size(damaged)
            except ValueError:
                continue
            assert height > 0
            assert width > 0


def test_a_damaged_png_never_reaches_the_decoder():
    whole = bad_files.png()
    assert image_size(np.frombuffer(whole, np.uint8)) == (bad_files.HEIGHT, bad_files.WIDTH)
    assert image_size(np.frombuffer(whole + b"more", np.uint8)) == (
        bad_files.HEIGHT,
        bad_files.WIDTH,
    )
    end = whole.index(b"IEND")
    for cut in range(34, end + 8):
        with pytest.raises(ValueError, match="PNG"):
            image_size(np.frombuffer(whole[:cut], np.uint8))
    pixels = whole.index(b"IDAT")
    for place in range(pixels + 4, end - 4):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        with pytest.raises(ValueError, match=r"damaged PNG: checksum of b'IDAT' at byte \d+"):
            image_size(np.frombuffer(damaged, np.uint8))
