"""One file of every kind that is found in image folders: sound, unusual and bad files."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60
_ORIENTATION = 0x0112


def picture(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """A smooth colourful picture without symmetry: turned in any way it is another picture."""
    y, x = np.mgrid[0:height, 0:width] / [[[max(height - 1, 1)]], [[max(width - 1, 1)]]]
    pixels = np.stack([200 * x, 220 * y, 60 + 120 * x * y], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of `image` as a file of format `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    """A JPEG of good quality, so that decoders agree."""
    return encode(image or picture(), "JPEG", **{"quality": 95, "subsampling": 0, **options})


def turned(orientation: int) -> bytes:
    """A JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return jpeg(exif=exif)


def png(kind: str = "RGB", **options: object) -> bytes:
    """A PNG of mode `kind`; alpha, if the mode has it, increases from left to right."""
    image = picture().convert("RGB")
    if kind.endswith("A"):
        alpha = Image.fromarray(np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1)))
        image = image.convert(kind)
        image.putalpha(alpha)
    return encode(image.convert(kind), "PNG", **options)


def png_chunks(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG that PIL cannot write. Each row of `rows` starts with a filter byte."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_16_bit(channels: int) -> bytes:
    """16 bits a sample: the picture in the high byte, its position in the low one."""
    pixels = np.asarray(picture()).astype(">u2")[:, :, :channels] * 256 + 7
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png_chunks(WIDTH, HEIGHT, 16, {1: 0, 3: 2}[channels], rows)


def sized(width: int, height: int) -> bytes:
    """A JPEG whose header states this size."""
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def without_adobe_mark() -> bytes:
    """A CMYK JPEG that does not say whether its inks are inverted."""
    data = jpeg(picture().convert("CMYK"))
    begin = data.index(b"\xff\xee")
    (length,) = struct.unpack_from(">H", data, begin + 2)
    return data[:begin] + data[begin + 2 + length :]


def jpeg_2000_that_crashes_decoders() -> bytes:
    """A gray JPEG 2000 of which one byte of the header is damaged."""
    data = bytearray(encode(picture().convert("L"), "JPEG2000"))
    data[data.index(b"\xff\x4f") + 46] = 0xFF
    return bytes(data)


def png_with_damaged_exif() -> bytes:
    """A PNG whose orientation, 6, has become 7; its checksum is that of before."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture(), "PNG", exif=exif)
    begin = data.index(b"eXIf")
    return data[:begin] + data[begin:].replace(b"\x00\x06", b"\x00\x07", 1)


def flipped(data: bytes, begin: int, count: int) -> bytes:
    """`data` with `count` bytes inverted, starting at `begin`."""
    middle = bytes(255 - byte for byte in data[begin : begin + count])
    return data[:begin] + middle + data[begin + count :]


def detailed() -> bytes:
    """A JPEG of noise, so that the compressed data is long."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return jpeg(Image.fromarray(noise))


@dataclass(frozen=True)
class Kind:
    """A kind of file: its bytes, and what the loader makes of them."""

    data: Callable[[], bytes]
    reason: str = ""
    """Why the file is refused; empty if it is decoded."""
    suffix: str = ".jpg"
    tolerance: int = 0
    """Largest difference from PIL in levels of 255, for files that are decoded."""


SOUND = {
    "baseline": Kind(jpeg),
    "upper_case": Kind(jpeg, suffix=".JPEG"),
    "progressive": Kind(lambda: jpeg(progressive=True)),
    "optimised": Kind(lambda: jpeg(optimize=True)),
    "restart_markers": Kind(lambda: jpeg(restart_marker_blocks=2)),
    "subsampled": Kind(lambda: jpeg(subsampling=2)),
    "gray": Kind(lambda: jpeg(picture().convert("L"))),
    "cmyk": Kind(lambda: jpeg(picture().convert("CMYK"))),
    "adobe_rgb": Kind(lambda: jpeg(keep_rgb=True)),
    "comment": Kind(lambda: jpeg(comment=b"x" * 60000)),
    "icc_profile": Kind(lambda: jpeg(icc_profile=b"not a profile" * 9000)),
    "garbage_after_end": Kind(lambda: jpeg() + b"garbage" * 100),
    **{f"turned_{k}": Kind(lambda k=k: turned(k)) for k in range(1, 9)},
    "one_pixel": Kind(lambda: jpeg(picture(1, 1))),
    "20000x10": Kind(lambda: jpeg(picture(10, 20000))),
    "mpo": Kind(lambda: encode(picture(), "MPO", save_all=True, append_images=[picture()])),
    "png": Kind(png, suffix=".png"),
    "png_named_jpg": Kind(png),
    "png_alpha": Kind(lambda: png("RGBA"), suffix=".png"),
    "png_palette": Kind(lambda: png("P"), suffix=".png"),
    "png_palette_transparent": Kind(lambda: png("P", transparency=3), suffix=".png"),
    "png_gray": Kind(lambda: png("L"), suffix=".png"),
    "png_gray_alpha": Kind(lambda: png("LA"), suffix=".png"),
    "png_1_bit": Kind(lambda: png("1"), suffix=".png"),
    "png_16_bit": Kind(lambda: png_16_bit(3), suffix=".png", tolerance=1),
    "png_16_bit_gray": Kind(lambda: png_16_bit(1), suffix=".png", tolerance=1),
    "webp": Kind(lambda: encode(picture(), "WEBP", quality=95), suffix=".webp"),
    "webp_alpha": Kind(
        lambda: encode(picture().convert("RGBA"), "WEBP", lossless=True), suffix=".webp"
    ),
    "webp_named_jpg": Kind(lambda: encode(picture(), "WEBP", lossless=True)),
    "bmp": Kind(lambda: encode(picture(), "BMP"), suffix=".bmp"),
    "tiff": Kind(lambda: encode(picture(), "TIFF"), suffix=".tif"),
    "tiff_cmyk": Kind(lambda: encode(picture().convert("CMYK"), "TIFF"), suffix=".tif"),
    "tiff_lzw": Kind(lambda: encode(picture(), "TIFF", compression="tiff_lzw"), suffix=".tiff"),
    "ppm": Kind(lambda: encode(picture(), "PPM"), suffix=".ppm"),
    "pgm": Kind(lambda: encode(picture().convert("L"), "PPM"), suffix=".pgm"),
    "jpeg_2000": Kind(lambda: encode(picture(), "JPEG2000"), suffix=".jp2"),
}
SILENT = {
    "flipped_pixels": Kind(lambda: flipped(detailed(), 3000, 200)),
    "flipped_table": Kind(lambda: flipped(jpeg(), jpeg().index(b"\xff\xdb") + 6, 10)),
    "flipped_jpeg_2000": Kind(
        lambda: flipped(encode(picture(), "JPEG2000"), 400, 50), suffix=".jp2"
    ),
}
"""Damage that no decoder notices."""
BAD = {
    "empty": Kind(lambda: b"", "empty"),
    "text": Kind(lambda: b"this is text", "format"),
    "web_page": Kind(lambda: b"<!DOCTYPE html><title>404 Not Found</title>" * 20, "format"),
    "zeros": Kind(lambda: bytes(5000), "format"),
    "gif": Kind(lambda: encode(picture(), "GIF"), "format"),
    "avif": Kind(lambda: encode(picture(), "AVIF"), "format"),
    "ico": Kind(lambda: encode(picture(), "ICO"), "format"),
    "cmyk_of_unknown_sense": Kind(without_adobe_mark, "format"),
    "ppm_of_5_bits": Kind(
        lambda: b"P6\n# a comment\n2 2\n31\n" + bytes(range(12)), "format", suffix=".ppm"
    ),
    "pgm_of_12_bits": Kind(lambda: b"P5 2 2 4095\n" + bytes(8), "format", suffix=".pgm"),
    "tiff_gray_alpha": Kind(
        lambda: encode(picture().convert("LA"), "TIFF"), "format", suffix=".tif"
    ),
    "tiff_float": Kind(lambda: encode(picture().convert("F"), "TIFF"), "format", suffix=".tif"),
    "tiff_lab": Kind(lambda: encode(Image.new("LAB", (40, 30)), "TIFF"), "format", suffix=".tif"),
    "first_two_bytes": Kind(lambda: jpeg()[:2], "header"),
    "cut_in_header": Kind(lambda: jpeg()[:100], "header"),
    "flipped_header": Kind(lambda: flipped(jpeg(), 2, 40), "header"),
    "no_pixels": Kind(lambda: sized(0, 0), "header"),
    "65000x65000": Kind(lambda: sized(65000, 65000), "size"),
    "png_65000x65000": Kind(lambda: png_chunks(65000, 65000, 8, 2, b""), "size", suffix=".png"),
    "cut_in_tables": Kind(lambda: jpeg()[: jpeg().index(b"\xff\xda")], "truncated"),
    "cut_in_half": Kind(lambda: detailed()[: len(detailed()) // 2], "truncated"),
    "no_end_marker": Kind(lambda: jpeg()[:-2], "truncated"),
    "lossless_jpeg": Kind(lambda: jpeg().replace(b"\xff\xc0", b"\xff\xc3", 1), "decode"),
    "flipped_codes": Kind(lambda: flipped(jpeg(), jpeg().index(b"\xff\xc4") + 6, 10), "decode"),
    "png_cut_in_half": Kind(lambda: png()[: len(png()) // 2], "truncated", suffix=".png"),
    "png_flipped": Kind(lambda: flipped(png(), 60, 8), "decode", suffix=".png"),
    "png_exif_flipped": Kind(png_with_damaged_exif, "decode", suffix=".png"),
    "jpeg_2000_flipped": Kind(jpeg_2000_that_crashes_decoders, "header", suffix=".jp2"),
    "webp_cut": Kind(
        lambda: encode(picture(), "WEBP", lossless=True)[:200], "header", suffix=".webp"
    ),
    "bmp_cut": Kind(lambda: encode(picture(), "BMP")[:3000], "decode", suffix=".bmp"),
}
ON_DISK = {"missing": "read"}
"""Files that cannot be read at all; `write_on_disk` makes them."""
LEFT_OUT = ("directory", "broken_link")
"""Named like images, but no files: they are no samples, and counted as left out."""


def write(kinds: dict[str, Kind], folder: Path) -> dict[str, Path]:
    """Write a file of every kind into `folder`, named after the kind."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, kind in kinds.items():
        paths[name] = folder / f"{name}{kind.suffix}"
        paths[name].write_bytes(kind.data())
    return paths


def write_on_disk(folder: Path) -> dict[str, Path]:
    """Write paths that are not readable files. `missing` exists until the caller deletes it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jpg" for name in (*ON_DISK, *LEFT_OUT)}
    paths["missing"].write_bytes(jpeg())
    paths["directory"].mkdir()
    paths["broken_link"].symlink_to("nowhere.jpg")
    return {name: paths[name] for name in ON_DISK}
