"""Reads arrays from a file that may be damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class DamagedError(Exception):
    """The file does not have the expected arrays; the message says why."""


def read_arrays(file: Path, *names: str) -> dict[str, np.ndarray]:
    """The named arrays of an `.npz` file. Raises DamagedError; never unpickles."""
    try:
        with file.open("rb") as stream, np.load(stream) as arrays:
            return {name: arrays[name] for name in names}
    # numpy and zipfile do not document what they raise on a damaged file
    except Exception as error:  # noqa: BLE001
        raise DamagedError(f"damaged ({str(error) or type(error).__name__})") from None
