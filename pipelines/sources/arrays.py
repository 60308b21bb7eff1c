"""Reads arrays from a file that may be damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.sources.retries import RETRIES

MAX_REASON = 100
"""Characters of numpy's reason, which may have the bytes of the file in it."""


class DamagedError(Exception):
    """The file does not have the expected arrays; the message says why."""


def read_arrays(file: Path, *names: str) -> dict[str, np.ndarray]:
    """The named arrays of an `.npz` file. Raises DamagedError; never unpickles."""

    def once() -> dict[str, np.ndarray]:
        with file.open("rb") as stream, np.load(stream) as arrays:
            return {name: arrays[name] for name in names}

    try:
        found = RETRIES.read(str(file), once)
    # numpy and zipfile do not document what they raise on a damaged file
    except Exception as error:  # noqa: BLE001
        text = " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(f"damaged ({text[:MAX_REASON]})") from None
    for name, array in found.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of what is no array
            raise DamagedError(f"damaged ({name} is no array)")
    return found


def require(*conditions: bool) -> None:
    """Raises DamagedError unless all are true."""
    if not all(conditions):
        raise DamagedError("damaged (its parts do not fit together)")


def are_whole(array: np.ndarray, count: int | None = None) -> bool:
    """Whether `array` is a list of whole numbers from 0 on, of `count` if that is given."""
    is_list = array.ndim == 1 and array.dtype.kind in "iu" and count in (None, len(array))
    return is_list and (not len(array) or int(array.min()) >= 0)
