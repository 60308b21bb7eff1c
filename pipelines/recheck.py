"""Looks again at images that were masked as bad: have they been repaired since?"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hvdtrain.errors import DataError
from pipelines import copies
from pipelines.bad import BadSample
from pipelines.commands.resizer import Resizer
from pipelines.images.headers import HeaderError, image_size
from pipelines.sources import Source
from pipelines.sources.packed import Packed
from pipelines.sources.subset import origin


def repaired(
    source: Source, masked: Sequence[BadSample], threads: int, beat: Callable[[], None]
) -> list[int]:
    """The ids of those of `masked` that can be used again, with their present bytes.

    An image whose bytes are those that were bad stays bad, even if some decoder takes them: a resumed
    run must not differ from one that was not stopped. One with other bytes, or that could not be read,
    is decoded as a whole. Of a packed dataset every copy must be sound. `beat` is called meanwhile.
    """
    forms, resizer = list(_forms(source)), Resizer([], threads)
    good: list[int] = []
    try:
        for bad in masked:
            if all(_is_sound(form, bad, resizer) for form in forms):
                good.append(bad.index)
            beat()
    finally:
        resizer.close()
    return good


def _forms(source: Source) -> Iterator[Source]:
    """Every copy of a packed dataset, or the source itself."""
    base, _ids = origin(source)
    if not isinstance(base, Packed):
        yield source
        return
    for copy in base.description["copies"].values():
        yield copies.view(source, copy["short_side"])


def _is_sound(source: Source, bad: BadSample, resizer: Resizer) -> bool:
    try:
        encoded: np.ndarray = source.read(bad.index)
        if bad.crc32 is not None and zlib.crc32(encoded.data) == bad.crc32:
            return False
        size = image_size(encoded)
    except (DataError, HeaderError):
        return False
    [result] = resizer([encoded], [size])
    return not isinstance(result, str)
