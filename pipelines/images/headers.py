"""Height and width of an encoded image from its header, as DALI will decode it.

The crop window is chosen before decoding, so the size must be known. JPEG and PNG headers are read
here in a few microseconds, other formats by PIL. An EXIF orientation that turns the image by a
quarter swaps height and width, because DALI's decoder applies it. Images that DALI would refuse or
that have too many pixels are refused here, before they cost time.
"""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 2**28 // 3
"""Most pixels of an image that is decoded: 256 MiB of RGB, about 89 megapixels."""
FORMATS = frozenset(["BMP", "JPEG2000", "PPM", "TIFF", "WEBP"])
"""Other formats that DALI decodes, by PIL's names."""

_PNM_HEADER = 4096  # bytes in which the header ends
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset([0x01, *range(0xD0, 0xD8)])
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_JPEG_END = b"\xff\xd9"
_ADOBE = 0xEE, b"Adobe"
_ORIENTATION = 0x0112
_PHOTOMETRIC, _CHANNELS = 0x0106, 0x0115
_TIFF_CHANNELS = {
    **dict.fromkeys(("1", "L", "P", "I;16", "I;16B"), (1,)),
    **dict.fromkeys(("RGB", "YCbCr"), (3, 4)),
    **dict.fromkeys(("RGBA", "CMYK"), (4,)),
}
"""Channels of TIFF files that DALI decodes as they are meant, by PIL's mode."""
_QUARTER_TURNS = (5, 6, 7, 8)


class HeaderError(ValueError):
    """The bytes cannot be decoded; `reason` is one of `bad.REASONS`."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def image_size(encoded: np.ndarray) -> tuple[int, int]:
    """(height, width) in pixels of an encoded image, [bytes] uint8.

    Raises HeaderError if it is no image of a known format, has no pixels or more than
    `MAX_PIXELS`, or is a JPEG or PNG without its end, or a PNG with a wrong checksum.
    """
    if not len(encoded):
        raise HeaderError("empty", "an empty file")
    data = encoded.data
    if bytes(data[:2]) == b"\xff\xd8":
        height, width = _jpeg_size(data)
    elif bytes(data[:16]) == _PNG and len(data) >= 24:
        height, width = _png_size(data)
    else:
        height, width = _other_size(data)
    if height < 1 or width < 1:
        raise HeaderError("header", "an image without pixels")
    if height * width > MAX_PIXELS:
        limit = f"{MAX_PIXELS // 10**6} megapixels"
        raise HeaderError("size", f"{width}x{height} pixels, more than the limit of {limit}")
    return height, width


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """Walk the marker segments up to the frame header. Source: ITU-T T.81, annex B."""
    place, end, turned, adobe = 2, len(data), False, False
    while place + 9 < end:
        if data[place] != 0xFF:
            raise HeaderError("header", "damaged JPEG header")
        marker = data[place + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2
            continue
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", data, place + 5)
            _require_end(data, place)
            if data[place + 9] == 4 and not adobe:
                raise HeaderError(
                    "format", "a CMYK JPEG without Adobe's mark: which way are its inks?"
                )
            return (width, height) if turned else (height, width)
        if marker == 0xDA or marker == 0xD9:
            raise HeaderError("header", "damaged JPEG: no frame header")
        length = (data[place + 2] << 8) | data[place + 3]
        if marker == 0xE1 and bytes(data[place + 4 : place + 10]) == b"Exif\0\0":
            turned = _orientation(data[place + 10 : place + 2 + length]) in _QUARTER_TURNS
        adobe |= marker == _ADOBE[0] and bytes(data[place + 4 : place + 9]) == _ADOBE[1]
        place += 2 + length
    raise HeaderError("header", "truncated JPEG header")


def _require_end(data: memoryview, frame: int) -> None:
    """Refuse a JPEG that is cut short after its frame header.

    A decoder notices the cut only if the window reaches it, and decodes the rest. Compressed data
    never contains an end marker (T.81, B.1.1.5), so searching for one is safe.
    """
    if data[-2:] != _JPEG_END and bytes(data).rfind(_JPEG_END, frame) < 0:
        raise HeaderError("truncated", "truncated JPEG: no end marker")


def _png_size(data: memoryview) -> tuple[int, int]:
    """Walk the chunks to the end, for an orientation, which may come after the pixels, and checksums.

    DALI's decoders may crash at a damaged PNG instead of refusing it. Source: W3C PNG, third
    edition, sections 5 and 11.3.
    """
    width, height = struct.unpack_from(">II", data, 16)
    if not 0 < height * width <= MAX_PIXELS:
        return height, width  # which the caller refuses
    place, end, turned = 8, len(data), False
    while place + 12 <= end:
        (length,) = struct.unpack_from(">I", data, place)
        name, after = bytes(data[place + 4 : place + 8]), place + 12 + length
        if after > end:
            break
        critical = name[:1].isupper() or name == b"eXIf"  # which may turn the image
        (checksum,) = struct.unpack_from(">I", data, after - 4)
        if critical and zlib.crc32(data[place + 4 : after - 4]) != checksum:
            raise HeaderError("decode", f"damaged PNG: checksum of {name!r} at byte {place}")
        if name == b"IEND":
            return (width, height) if turned else (height, width)
        if name == b"eXIf":
            turned = _orientation(data[place + 8 : place + 8 + length]) in _QUARTER_TURNS
        place = after
    raise HeaderError("truncated", "truncated PNG: no end chunk")


def _orientation(tiff: memoryview) -> int:
    """The orientation (1 to 8) of an EXIF block; 1 where there is none or it is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, _kind, _count, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _ORIENTATION:
                return int(value)
    except struct.error:
        pass
    return 1


def _other_size(data: memoryview) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind, (width, height) = image.format, image.size  # for a TIFF PIL has turned it already
            turned = kind != "TIFF" and _other_orientation(image) in _QUARTER_TURNS
            fault = {"TIFF": _tiff_fault, "PPM": _pnm_fault}.get(kind or "", _none)(image, data)
            if kind == "JPEG2000" and width * height <= MAX_PIXELS:
                image.load()  # a damaged one may crash DALI; PIL notices it
    except UnidentifiedImageError:
        raise HeaderError("format", "not an image") from None
    except Image.DecompressionBombError:
        raise HeaderError("size", f"more than {MAX_PIXELS // 10**6} megapixels") from None
    except Exception as error:  # noqa: BLE001 - PIL raises many kinds on damaged data
        reason = " ".join(str(error).split())
        raise HeaderError("header", f"damaged image ({reason})") from None
    if kind not in FORMATS:
        raise HeaderError("format", f"a {kind} file, which is not decoded")
    if fault:
        raise HeaderError("format", f"{fault}, which DALI does not decode as it is meant")
    return (width, height) if turned else (height, width)


def _other_orientation(image: Image.Image) -> int | None:
    exif = image.info.get("exif")
    if image.format == "WEBP" and isinstance(exif, bytes):
        return _orientation(memoryview(exif.removeprefix(b"Exif\0\0")))
    return image.getexif().get(_ORIENTATION)


def _none(_image: Image.Image, _data: memoryview) -> str:
    return ""


def _tiff_fault(image: Image.Image, _data: memoryview) -> str:
    """What DALI would decode to other colours; empty for the usual kinds of TIFF."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    channels = tags.get(_CHANNELS, 1)
    if channels not in _TIFF_CHANNELS.get(image.mode, ()):
        return f"a TIFF of mode {image.mode} with {channels} channels"
    if image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == 0:
        return "a TIFF of 16 bits in which 0 is white"
    return ""


def _pnm_fault(_image: Image.Image, data: memoryview) -> str:
    """As `_tiff_fault`: DALI takes 255 (or 65535) for white, whatever the header of a PGM or PPM says."""
    words = re.sub(rb"#[^\r\n]*", b"", bytes(data[:_PNM_HEADER])).split(None, 4)
    is_binary = words[:1] in ([b"P5"], [b"P6"])
    white = words[3] if is_binary and len(words) > 3 else b"255"
    return "" if white in (b"255", b"65535") else f"a PNM in which {white.decode()} is white"
